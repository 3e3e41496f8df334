"""From a model and a text to explanations: what each token and word adds to each logit.

Attention gives a token its weight times its output. The teacher's and the linear score are sums
over distinct tokens and words of a document; what one of them adds is shared evenly among its
occurrences, and what a phrase adds among its words. See docs/method.md, "Planted attention", "The
linear score" and "Planted phrases".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from plantlib.backbones import windows
from plantlib.kernels import Cells
from plantlib.model import reading, streaming
from plantlib.model.explanation import Explanation
from plantlib.planting.contexts import cells_of, together
from plantlib.planting.phrases import Mention
from plantlib.teacher.phrase_matching import words_of


class Request(NamedTuple):
    """One document and the labels to explain: ids (T,) packed with offsets (2,), columns (U,)."""

    text: str
    ids: torch.Tensor
    offsets: torch.Tensor
    columns: torch.Tensor


def explain(
    model, text: str, labels: Sequence[str], kind: str = "contribution"
) -> list[Explanation]:
    """One Explanation per label; the text is read window by window.

    Args:
        model: a `PlantModel` with its backbone.
        text: one document.
        labels: names of labels.
        kind: weight of a word in what is drawn, one of `explanation.KINDS`.

    Raises:
        ValueError: an unknown label; the message names similar ones.
    """
    columns = torch.tensor([column_of(model, label) for label in labels], dtype=torch.long)
    request = Request(text, *model.pack(model.tokenise([text])), columns.to(model.device))
    decoder = model.decoder
    if decoder.l2r is not None or decoder.contexts == "sum" or decoder.stateful == "v1":
        by_label = _first_version(model, request)
    else:
        by_label = _one_softmax(model, request)
    shared = {
        "text": text,
        "spans": spans_of(model, text),
        "calibration": model.config.calibration,
        "credentialed": model.config.credentialed,
        "unread": int(model.unread([text])[0]),
        "kind": kind,
    }
    names = model.config.label_texts or {}
    scores = _document_scores(model, request)
    return [
        Explanation(label=label, name=names.get(label, ""), **attended, **added, **shared)
        for label, attended, added in zip(labels, by_label, scores, strict=True)
    ]


def _one_softmax(model, request: Request) -> list[dict]:
    """Learned scores, relevance and outputs of every token, for each label."""
    decoder = model.decoder
    learned, outputs = _read(model, request)
    cells = together(decoder.planted.cells(request.ids), _phrase_cells(model, request))
    relevance = relevance_of(cells, request.columns, len(request.ids))
    parts = [part.float().cpu().numpy().T for part in (learned, relevance, outputs)]
    options = {"gain": float(decoder.planted_gain), "keep": decoder.keep}
    names = ("learned", "relevance", "outputs")
    return [
        dict(zip(names, of_label, strict=True)) | options for of_label in zip(*parts, strict=True)
    ]


def _phrase_cells(model, request: Request) -> Cells | None:
    """Planted cells of the phrases in the document."""
    heard = model.heard([request.text])
    if heard is None:
        return None
    return cells_of(reading.cells_of(model, heard.cells, request.offsets))


def _first_version(model, request: Request) -> list[dict]:
    """Attention and outputs of a model with an L2R table, several contexts or the running state.

    With the running state the logit is attention over the last segment, and the sigmoid of the
    logit before it: that is the rest, and the tokens of earlier segments have no weight.
    """
    hidden = model.encode(request.ids, request.offsets)
    segment = _last_segment(model, request)
    before = _running_state(model, hidden, request, segment)
    begin, end = segment.start, segment.stop
    offsets = request.offsets.new_tensor([0, end - begin])
    inside = [windows.Window(begin, end, begin, end)]
    own = streaming.cells_within(_phrase_cells(model, request), inside, len(request.ids))
    packed = model.packed(hidden[segment], request.ids[segment], offsets, own)
    by_label = []
    for column, rest in zip(request.columns.tolist(), before, strict=True):
        parts = model.decoder.attention(packed, column)
        whole = np.zeros((3, len(request.ids)), np.float32)
        whole[:, begin:end] = [part.float().cpu().numpy() for part in parts]
        attention, planted, outputs = whole
        by_label.append(
            {
                "learned": np.zeros_like(planted),
                "relevance": planted,
                "outputs": outputs,
                "gain": 1.0,
                "fixed": attention,
                "rest": rest,
            }
        )
    return by_label


def _last_segment(model, request: Request) -> slice:
    """The tokens whose attention decides: all, or the segment that the running state reads last."""
    if model.decoder.stateful != "v1" or len(request.ids) <= model.config.window:
        return slice(0, len(request.ids))
    cut = windows.spans(request.offsets, model.config.window)
    [last] = list(windows.rounds_of(cut, model.config.backward))[-1]
    assert last is not None
    return slice(last.begin, last.end)


def _running_state(model, hidden, request: Request, segment: slice) -> list[float]:
    """What the running state adds to each logit: the sigmoid of the logits before `segment`."""
    tokens = len(request.ids)
    if segment == slice(0, tokens):
        return [0.0] * len(request.columns)
    earlier = slice(segment.stop, tokens) if model.config.backward else slice(0, segment.start)
    ids = request.ids[earlier]
    state = streaming.read_segments(
        model, hidden[earlier], ids, request.offsets.new_tensor([0, len(ids)])
    )
    before = torch.sigmoid(state.value + model.decoder.label_bias)
    return before[0, request.columns].tolist()


def _document_scores(model, request: Request) -> list[dict]:
    """What the document scores add to each logit, by token and by word, and the bias."""
    decoder, columns = model.decoder, request.columns
    bias = decoder.bias_of(columns)
    teacher: list = [None] * len(columns)
    scored: list = [()] * len(columns)
    if model.teacher_score is not None:
        added = model.teacher_score.added(request.ids, columns) * decoder.teacher_gain
        teacher = list(added.float().cpu().numpy().T)
    if model.word_score is not None:
        bias = bias + decoder.linear_gain * model.word_score.intercept[columns]
        spans, ids = model.word_score.places(request.text)
        added = model.word_score.added(ids, columns) * decoder.linear_gain
        scored = [
            [(begin, end, value) for (begin, end), value in zip(spans, values, strict=True)]
            for values in added.double().T.tolist()
        ]
    mentions: list = [()] * len(columns)
    if model.phrase_score is not None:
        bias = bias + decoder.linear_gain * model.phrase_score.intercept[columns]
        gain = decoder.linear_gain.item()
        mentions = [
            [m._replace(adds=gain * m.adds) for m in model.phrase_score.mentions(request.text, i)]
            for i in columns.tolist()
        ]
        scored = [
            [*of_words, *by_words(request.text, own)]
            for of_words, own in zip(scored, mentions, strict=True)
        ]
    return [
        {"bias": b, "teacher": t, "scored": s, "mentions": tuple(m)}
        for b, t, s, m in zip(bias.tolist(), teacher, scored, mentions, strict=True)
    ]


def by_words(text: str, mentions: Sequence[Mention]) -> list[tuple[int, int, float]]:
    """(begin, end, what it adds) of the words of phrases, which share evenly what a phrase adds."""
    _, places = words_of(text)
    found = []
    for mention in mentions:
        first = int(np.searchsorted(places[:, 1], mention.begin, side="right"))
        behind = int(np.searchsorted(places[:, 0], mention.end, side="left"))
        share = mention.adds / (behind - first)
        found += [(begin, end, share) for begin, end in places[first:behind].tolist()]
    return found


def column_of(model, label: str) -> int:
    """The column of a label; ValueError for an unknown one, naming labels that begin alike."""
    known = model.config.label2id
    if label not in known:
        near = [name for name in known if name.lower().startswith(label.lower()[:3])][:5]
        raise ValueError(
            f"label {label!r} is not one of {model.config.num_labels}; near ones:"
            f" {', '.join(near) or 'none'}"
        )
    return known[label]


def spans_of(model, text: str) -> list[tuple[int, int]]:
    """Character span of each token that the model reads of `text`."""
    most = model.config.max_tokens
    encoded = model.tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        truncation=most is not None,
        max_length=most,
        verbose=False,
    )
    return [tuple(span) for span in encoded["offset_mapping"]]


def relevance_of(cells, columns: torch.Tensor, tokens: int) -> torch.Tensor:
    """(T, labels) relevance G of one document's tokens, from its planted cells or None."""
    relevance = torch.zeros((tokens, len(columns)), device=columns.device)
    for i, column in enumerate(columns.tolist() if cells is not None else ()):
        of_label = cells.labels == column
        relevance[:, i].index_add_(0, cells.positions[of_label], cells.values[of_label])
    return relevance


def _read(model, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, labels) learned scores and outputs; hidden states exist for one window at a time."""
    backbone, memory = model.as_backbone(), ()
    learned = model.decoder.planted_gain.new_zeros((len(request.ids), len(request.columns)))
    outputs = learned.clone()
    for cut in windows.rounds(backbone, request.offsets):
        hidden, memory = windows.encode_round(backbone, request.ids, cut, memory)
        part = slice(cut[0].begin, cut[0].end)
        hidden = model.standardise(hidden).to(learned.dtype)
        scores = model.decoder.token_scores(hidden, None, request.columns)
        learned[part], outputs[part] = scores
    return learned, outputs
