"""PlantModel: saving and loading to the bit, predictions, explanations, and the loss.

docs/method.md, "Planted attention" and "Choosing on dev, reading test once". The model is small and
has all its parts (planted table, teacher score, calibration); its backbone is the tiny one. The
loss on sparse labels is compared with PyTorch's on dense ones.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from plantlib import PlantModel
from plantlib.backbones import loading
from plantlib.kernels.attention_bce import sparse_bce
from plantlib.model.plant_model import PlantConfig, PlantOutput
from plantlib.planting import starts
from plantlib.planting.decoder import LabelDecoder, Packed
from plantlib.training.ingredients import teacher_of
from plantlib.training.options import RunConfig
from plantlib.training.runs import build_model, use_score
from tests.conftest import OPERATIONS, WINDOW, save_backbone, tiny_tokenizer
from tests.tolerances import assert_within_rounding, near

TEXTS = [
    "The pulse and the valve were seen.",
    "itch, rash & burn <b>today</b>",
    "",
    "gold " * (4 * WINDOW),
]


def planted_model(prepared, backbone, *, start="lookup+score", keep=None, seed=0) -> PlantModel:
    """A model over `backbone` with teacher, calibration and random queries."""
    teacher = teacher_of(prepared)
    model = build_model(prepared, teacher, RunConfig(keep=keep))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starts, "INIT_STD", 0.3)
        starts.plant(model.decoder, start, teacher, prepared.train_labels, seed=seed)
    use_score(model, start.split("+"), teacher, prepared)
    model.config.calibration, model.config.threshold = [0.5, 0.1, 0.9], 0.25
    return model.attach_backbone(backbone).eval()


@pytest.fixture
def model(prepared, backbone):
    return planted_model(prepared, backbone)


def logits_of(model, texts=TEXTS) -> torch.Tensor:
    tokens = model.tokenise(texts)
    with torch.inference_mode():
        return model(torch.from_numpy(tokens.flat).long(), torch.from_numpy(tokens.offsets)).logits


@pytest.mark.parametrize("start", ["lookup+score", "random"])
def test_saved_and_loaded_to_the_bit(start, prepared, backbone, tmp_path):
    model = planted_model(prepared, backbone, start=start, keep=5)
    model.save_pretrained(tmp_path / "m")
    loaded = PlantModel.from_pretrained(tmp_path / "m")
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert loaded.predict(TEXTS) == model.predict(TEXTS)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert (
        set(loaded.state_dict()) == set(model.state_dict())
        and "decoder.planted.planted_values" in model.state_dict()
    )
    assert (loaded.config.calibration, loaded.config.threshold, loaded.config.keep) == (
        [0.5, 0.1, 0.9],
        0.25,
        5,
    )
    assert (
        loaded.config.id2label == dict(enumerate(prepared.corpus.label_names))
        and loaded.config.window == WINDOW
    )
    assert len(loaded.tokenizer) == len(model.tokenizer) and not loaded.training
    assert {p.suffix for p in (tmp_path / "m").iterdir()} <= {".json", ".safetensors"}
    assert not [
        text
        for text in (tmp_path / "m" / "config.json").read_text().split('"')
        if text.startswith("/")
    ]


def test_rotary_backbone_survives_saving(prepared, tmp_path):
    """Llama's rotary frequencies are not in the file, so they must be computed on loading."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=WINDOW + 2,
        pad_token_id=0,
    )
    backbone = loading.load(save_backbone(tmp_path / "llama", LlamaModel(config), tokenizer))
    model = planted_model(prepared, backbone)
    model.save_pretrained(tmp_path / "m")
    assert torch.equal(logits_of(PlantModel.from_pretrained(tmp_path / "m")), logits_of(model))


@pytest.mark.parametrize("tuned", [False, True], ids=["whole", "adapters"])
def test_bfloat16_backbone_keeps_a_float32_head(tuned, prepared, backbone_folder, tmp_path):
    from plantlib.backbones import adapters

    model = planted_model(prepared, loading.load(backbone_folder, dtype="bfloat16"))
    if tuned:
        model.backbone = adapters.add_lora(model.backbone).eval()
    model.save_pretrained(tmp_path / "m")
    loaded = PlantModel.from_pretrained(tmp_path / "m")
    for result in (model, loaded):
        assert {p.dtype for n, p in result.named_parameters() if n.startswith("decoder.")} == {
            torch.float32
        }
        of_backbone = {
            p.dtype
            for n, p in result.named_parameters()
            if n.startswith("backbone.") and "lora_" not in n
        }
        assert of_backbone == {torch.bfloat16}
    assert torch.equal(logits_of(loaded), logits_of(model))  # the same numbers in the same order


def test_auto_classes_load_it(model, tmp_path):
    from transformers import AutoConfig, AutoModel

    model.save_pretrained(tmp_path / "m")
    assert isinstance(AutoConfig.from_pretrained(tmp_path / "m"), PlantConfig)
    loaded = AutoModel.from_pretrained(tmp_path / "m")
    assert isinstance(loaded, PlantModel) and torch.equal(logits_of(loaded), logits_of(model))


def test_decoder_alone_is_saved_and_completed_later(prepared, backbone, tmp_path):
    model = planted_model(prepared, backbone)
    whole = logits_of(model)
    model.backbone, model.tokenizer, model.config.backbone_config = None, None, None
    model.save_pretrained(tmp_path / "m")
    loaded = PlantModel.from_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="no tokenizer; attach a backbone"):
        loaded.predict(["a"])
    assert torch.equal(logits_of(loaded.attach_backbone(backbone)), whole)


def test_another_backbone_is_refused(model, prepared, tmp_path):
    from transformers import BertConfig, BertModel

    tokenizer = tiny_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    other = loading.load(save_backbone(tmp_path / "other", BertModel(config), tokenizer))
    with pytest.raises(
        ValueError, match=f"hidden size 8 and {len(tokenizer)} tokens, the decoder wants 24"
    ):
        model.attach_backbone(other)


@pytest.mark.parametrize("k", [1, 3, 10**3], ids=["one", "three", "more than there are"])
def test_predict_gives_sorted_probabilities(model, k):
    result = model.predict(TEXTS, k=k, batch=3)
    assert len(result) == len(TEXTS)
    for row, logits in zip(result, logits_of(model), strict=True):
        scores = [s for _, s in row]
        assert len(row) == min(k, model.config.num_labels) == len({name for name, _ in row})
        assert scores == sorted(scores, reverse=True) and all(0 <= s <= 1 for s in scores)
        name, best = row[0]
        assert name == model.config.id2label[int(logits.argmax())]
        assert best == near(0.9 / (1 + math.exp(-(0.5 * float(logits.max()) + 0.1))), OPERATIONS)


def test_predict_does_not_depend_on_the_batch_or_on_training_mode(model):
    first = model.predict(TEXTS, k=2)
    model.train()
    second = model.predict(TEXTS, k=2, batch=1)
    for (a, x), (b, y) in zip(sum(first, []), sum(second, []), strict=True):
        assert a == b and x == near(y, OPERATIONS)


def test_equal_scores_are_ranked_by_label_id(model, monkeypatch):
    labels = model.config.num_labels
    logits = torch.zeros(1, labels)
    logits[0, labels - 1] = 2.0
    monkeypatch.setattr(type(model), "forward", lambda *a, **k: PlantOutput(logits=logits))
    ids = [model.config.label2id[name] for name, _ in model.predict(["pulse"], labels)[0]]
    assert ids == [labels - 1, *range(labels - 1)]


@pytest.mark.parametrize("options", [{"k": 0}, {"k": -1}, {"k": 1.5}, {"batch": 0}, {"k": None}])
def test_predict_refuses_numbers_that_mean_nothing(options, model):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        model.predict(["pulse"], **options)


def test_predict_on_one_string_is_refused(model):
    with pytest.raises(ValueError, match=r"write predict\(\[text\]\)"):
        model.predict("pulse")
    assert model.predict([]) == []


def test_very_long_text_is_read_in_windows_to_its_end(model):
    text = "the " * (5 * WINDOW) + "comet " * WINDOW
    assert len(model.tokenise([text]).flat) == 6 * WINDOW
    assert len(model.explain(text, "heart").attention) == 6 * WINDOW
    cut = logits_of(model, [text[: -len("comet ") * WINDOW]])
    assert not torch.allclose(logits_of(model, [text]), cut)


@pytest.mark.parametrize("keep", [None, 2], ids=["all", "keep 2"])
def test_explanation_is_what_the_model_did(keep, prepared, backbone):
    """Attention sums to one, spans index the text, and the parts add up to the logit."""
    model = planted_model(prepared, backbone, start="lookup", keep=keep)
    text = "Pulse and valve, seen today; itch?"
    result = model.explain(text, "heart")
    column = model.config.label2id["heart"]
    assert result.attention.sum() == near(1, OPERATIONS) and (result.attention >= 0).all()
    assert keep is None or (result.attention > 0).sum() == keep
    words = [text[slice(*span)] for span in result.spans]
    assert words[:3] == ["Pulse", "and", "valve"] and len(words) == len(result.attention) == len(
        result.planted
    )
    assert result.planted[0] > 0 and result.planted[1] == 0, (
        "pulse is planted for heart, 'and' is not"
    )
    logit = float(
        (result.attention * result.outputs).sum() + model.decoder.label_bias[column].detach()
    )
    size = float(np.abs(result.outputs).max())
    for same in (result.logit, float(logits_of(model, [text])[0, column])):
        assert logit == near(same, OPERATIONS, size=size)
    best = result.at(kind="attention").top_words(1)[0]
    assert best == (
        words[int(result.attention.argmax())],
        near(float(result.attention.max()), operations=1),
    )


def test_explanation_escapes_the_text(model):
    result = model.explain('itch <script>alert("x")</script> & pulse', "heart")
    html = result._repr_html_()
    assert (
        "<script" not in html
        and "&amp;" in html
        and "&lt;" in html
        and html.count("<span") == len(result.words)
    )
    assert "heart" in repr(result)


def test_explanation_of_an_empty_text(model):
    result = model.explain("", "heart")
    assert (
        result.spans == []
        and result.top() == []
        and math.isfinite(result.logit)
        and "heart" in result._repr_html_()
    )


def test_unknown_label_names_near_ones(model):
    with pytest.raises(ValueError, match=r"label 'heartache' is not one of 7; near ones: heart$"):
        model.explain("pulse", "heartache")
    with pytest.raises(ValueError, match="near ones: none"):
        model.explain("pulse", "zzz")


@pytest.mark.parametrize(("batch", "labels"), [(3, 7), (1, 1), (4, 200)])
def test_sparse_bce_equals_dense_bce(batch, labels):
    generator = torch.Generator().manual_seed(0)
    logits = (
        torch.randn(batch, labels, generator=generator, dtype=torch.float64) * 30
    ).requires_grad_()
    gold = torch.rand(batch, labels, generator=generator) < 0.2
    gold[0] = False
    dense = (
        torch.nn.functional.binary_cross_entropy_with_logits(logits, gold.double(), reduction="sum")
        / batch
    )
    loss = sparse_bce(logits, *gold.nonzero(as_tuple=True))
    # softplus leaves out what is below exp(-20)
    torch.testing.assert_close(loss, dense, rtol=0, atol=labels * math.exp(-20))
    expected, result = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (dense, loss))
    torch.testing.assert_close(result, expected, rtol=0, atol=math.exp(-20) / batch)


@pytest.mark.parametrize("contexts", ["mixed", "sum"])
def test_labels_left_out_of_the_loss_are_not_there_for_it(contexts):
    """Loss and gradients are those of a decoder of the other labels; theirs are exactly zero."""
    generator = torch.Generator().manual_seed(0)
    keep, still = torch.tensor([0, 2, 3]), torch.tensor([1, 4])
    hidden = torch.randn(9, 4, generator=generator)
    packed = Packed(
        hidden.requires_grad_(), torch.zeros(9, dtype=torch.long), torch.tensor([0, 5, 9])
    )
    z = torch.randn(2, 5, generator=generator)
    z[:, 4] = 1e6  # however sure the teacher is of it
    whole, part = (LabelDecoder(n, 4, num_l2r_cells=1, contexts=contexts) for n in (5, 3))
    with torch.no_grad():
        for name, p in whole.named_parameters():
            p.normal_(generator=generator) if p.dim() else p.fill_(1.0)
            p = p[keep] if p.shape[:1] == (5,) else p
            dict(part.named_parameters())[name].copy_(p)
    rows, columns = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 2])
    loss, _ = whole.loss(packed, rows, keep[columns], z, still=still)
    expected, _ = part.loss(packed, rows, columns, z[:, keep])
    assert_within_rounding(loss, expected, operations=60)  # 9 tokens, 5 labels, exponents to 40
    shared = ["label_queries", "label_outputs", "label_bias", "teacher_gain"]
    result = torch.autograd.grad(loss, [getattr(whole, n) for n in shared] + [hidden])
    expected = torch.autograd.grad(expected, [getattr(part, n) for n in shared] + [hidden])
    for name, a, b in zip([*shared, "hidden"], result, expected, strict=True):
        if a.shape[:1] == (5,):
            assert not a[still].any(), name
            a = a[keep]
        assert_within_rounding(a, b, operations=60, name=name)


def test_cached_features_give_nearly_the_same_logits(model, prepared):
    """Logits from float16 features and from the backbone."""
    batch = prepared.documents("test").collate([80, 7, 95])
    text = [prepared.corpus.texts[i] for i in (80, 7, 95)]
    with torch.inference_mode():
        frozen = model(**{k: v for k, v in batch.items() if not k.startswith("label_")}).logits
    # a feature is rounded once to float16, which moves its score and its output
    assert_within_rounding(frozen.half(), logits_of(model, text), operations=2)
    assert batch["hidden_states"].dtype == torch.float32 and np.isfinite(frozen).all()
