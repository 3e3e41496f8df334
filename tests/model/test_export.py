"""The ONNX graph of a model, read as the guide reads it, against the model in PyTorch."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from plantlib import PlantModel, RunConfig, fit, prepare
from plantlib.backbones import loading
from plantlib.data.credentials import PrivacyError
from plantlib.model import export, export_phrases, reading
from plantlib.planting import starts
from plantlib.teacher.phrase_matching import WORD, words_of
from plantlib.training import artefacts, candidate_fit
from plantlib.training.ingredients import build_model, ingredients, use_score
from tests.conftest import FILLER, THEMES
from tests.training.test_planted_phrases import spans_of

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

START = "lookup+score+linear"
GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


@pytest.fixture(scope="module")
def model(prepared, backbone_folder):
    """A model in which every term of the logit counts."""
    made = ingredients(prepared, START, RunConfig(), progress=False)
    model = build_model(prepared, made, RunConfig())
    starts.plant(model.decoder, START, made.teacher, prepared.train_labels, seed=0)
    use_score(model, START.split("+"), made.teacher, prepared)
    torch.manual_seed(0)
    for name, size in (("label_queries", 1.0), ("label_outputs", 1.0), ("label_bias", 1.0)):
        getattr(model.decoder, name).data.normal_(std=size)
    for name, gain in (("planted_gain", 1.5), ("teacher_gain", 0.7), ("linear_gain", 1.3)):
        getattr(model.decoder, name).data.fill_(gain)
    model.config.calibration = [0.8, -0.3, 0.97]
    return model.attach_backbone(loading.load(backbone_folder))


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return export.to_onnx(model, tmp_path_factory.mktemp("export") / "graph")


def blocks(word: str) -> list[str]:
    """The lines of the first Python block of the guide that holds a word."""
    found = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    return next(block for block in found if word in block).splitlines()


def reader(folder: Path):
    """A function from a text to (logits, chances), which runs the scripts of the guide."""
    lines = blocks("onnxruntime")
    begin = next(i for i, line in enumerate(lines) if line.startswith("text ="))
    run = next(i for i, line in enumerate(lines) if "session.run" in line)
    if (folder / export.PHRASES).exists():
        lines[run:run] = blocks("phrases.json")
    script = [line.replace("graph/", f"{folder}/") for line in lines]
    names: dict = {}
    exec("\n".join(script[:begin]), names)  # the guide's own words
    code = compile("\n".join(script[begin + 1 : -1]), "guide", "exec")

    def read(text: str) -> tuple[np.ndarray, np.ndarray]:
        scope = names | {"text": text}
        exec(code, scope)
        return scope["logits"], scope["chances"]

    return read


def documents() -> list[str]:
    """200 documents of 0 to 300 words, known and unknown ones, of one window and of many."""
    rng = random.Random(0)
    words = [*FILLER, *(w for theme in THEMES.values() for w in theme), "Zeppelin", "x", "£5."]
    lengths = [0, 1, 2, 11, 12, 13, 14, 15, 28, 29, 300, *(rng.randrange(90) for _ in range(189))]
    return [" ".join(rng.choices(words, k=length)) for length in lengths]


def test_the_script_of_the_guide_agrees_with_the_model(model, exported):
    read, texts = reader(exported), documents()
    assert len(texts) == 200 and len({len(model.tokenise([t]).flat) for t in texts}) > 60
    expected = torch.cat(list(reading.logits(model, texts))).numpy()
    found = [read(text) for text in texts]
    assert np.abs(np.stack([logits for logits, _ in found]) - expected).max() < 1e-4
    for text, (_, chances) in zip(texts[:20], found, strict=False):
        best = dict(model.predict([text], k=8)[0])
        names = json.loads((exported / export.ABOUT).read_text())["labels"]
        assert dict(zip(names, chances.tolist(), strict=True)) == pytest.approx(best, abs=1e-4)


def test_the_script_reads_the_quick_tier_too(corpus, tmp_path):
    options = {"root": tmp_path, "max_tokens": 12, "progress": False}
    quick = fit(corpus, backbone="words", start=START, **options)
    torch.manual_seed(0)
    quick.decoder.label_outputs.data.normal_(std=3)
    read, texts = reader(export.to_onnx(quick, tmp_path / "graph")), documents()
    assert max(quick.unread(texts)) > 5 and not len(quick.tokenise([texts[0]]).flat)
    expected = torch.cat(list(reading.logits(quick, texts))).numpy()
    found = np.stack([read(text)[0] for text in texts])
    assert len(texts) == 200 and np.abs(found - expected).max() < 1e-4
    assert expected.std(0).min() > 0.1  # documents differ in every label


@pytest.mark.parametrize("backbone", ["words", "tiny-bert"])
def test_the_script_reads_a_model_on_candidates(
    corpus, backbone_folder, tmp_path, monkeypatch, backbone
):
    monkeypatch.setattr(candidate_fit, "CELLS", 0)
    monkeypatch.setattr(candidate_fit, "WIDTH", 3)
    folder = backbone if backbone == "words" else backbone_folder
    model = fit(corpus, backbone=folder, root=tmp_path, max_tokens=12, progress=False)
    torch.manual_seed(0)
    model.decoder.output_rows.weight.data.normal_(std=3)
    read, texts = reader(export.to_onnx(model, tmp_path / "graph")), documents()
    expected = torch.cat(list(reading.logits(model, texts))).numpy()
    found = np.stack([read(text)[0] for text in texts])
    listed = expected > -np.inf
    assert (listed.sum(1) == 3).all() and ((found > -np.inf) == listed).all()
    assert len(texts) == 200 and np.abs(found[listed] - expected[listed]).max() < 1e-4
    assert expected[listed].std() > 0.1


def test_each_term_is_in_the_graph(model, exported):
    """Without the part, the logits would differ: none of them is tested against nothing."""
    text = documents()[10]
    (whole,) = reading.logits(model, [text])
    for name in ("planted_gain", "teacher_gain", "linear_gain"):
        gain = getattr(model.decoder, name).data
        before = gain.clone()
        gain.zero_()
        (without,) = reading.logits(model, [text])
        gain.copy_(before)
        assert (whole - without).abs().max() > 0.01, name


def spoken(texts: list[str]) -> list[str]:
    """Texts with accents, ligatures, capitals, marks and letters of other scripts among them."""
    rng = random.Random(1)
    odd = "Pulses VÁLVE va\u0301lve ﬁeld STRASSE rash, (itch) “burn” — lens… ½ a_b 虎穴".split()
    odd += ["no sign", "fracture\u200d", "हिन्दी", "\u0301", "ΣΊΣΥΦΟΣ", "İ"]
    return [" ".join((text, *rng.choices(odd, k=rng.randrange(6)), text[:40])) for text in texts]


def with_phrases(corpus, backbone: str, start: str, root: Path, most: int | None = None):
    """A model of a start with phrases, in which every term of the logit counts."""
    spans = dataclasses.replace(corpus, evidence=spans_of(corpus))
    prepared = prepare(spans, backbone=backbone, max_tokens=most, root=root, progress=False)
    made = ingredients(prepared, start, RunConfig(), progress=False)
    model = build_model(prepared, made, RunConfig())
    starts.plant(model.decoder, start, made.teacher, prepared.train_labels, seed=0)
    use_score(model, start.split("+"), made.teacher, prepared)
    torch.manual_seed(0)
    for name in ("label_queries", "label_outputs", "label_bias"):
        getattr(model.decoder, name).data.normal_()
    for name, gain in (("planted_gain", 3.0), ("linear_gain", 0.7)):
        getattr(model.decoder, name).data.fill_(gain)
    return model.attach_backbone(artefacts.load_backbone(prepared))


@pytest.mark.parametrize(
    ("start", "backbone", "most"),
    [
        ("evidence", "tiny-bert", None),
        ("phrases+linear", "tiny-bert", 20),
        ("shuffled+evidence+phrases", "tiny-bert", None),
        ("evidence+lookup+linear", "words", 12),
    ],
)
def test_the_script_finds_planted_phrases(corpus, backbone_folder, tmp_path, start, backbone, most):
    folder = backbone_folder if backbone == "tiny-bert" else backbone
    model = with_phrases(corpus, folder, start, tmp_path, most)
    read, texts = reader(export.to_onnx(model, tmp_path / "graph")), documents()
    texts += spoken(texts[:60])
    expected = torch.cat(list(reading.logits(model, texts))).numpy()
    found = np.stack([read(text)[0] for text in texts])
    assert np.abs(found - expected).max() < 1e-4
    # neither attention nor the score is tested against nothing
    for name in ("planted_gain", "linear_gain"):
        gain = getattr(model.decoder, name).data
        before = gain.clone()
        gain.zero_()
        without = torch.cat(list(reading.logits(model, texts))).numpy()
        gain.copy_(before)
        assert np.abs(expected - without).max() > 0.1, name


def test_words_of_phrases_are_found_by_characters_alone():
    plain = re.compile(export_phrases.word_pattern())
    for text in spoken(documents()[:40]):
        places = [list(match.span()) for match in plain.finditer(text)]
        assert places == words_of(text)[1].tolist()
        assert places == [list(match.span()) for match in WORD.finditer(text)]


def test_a_limit_of_tokens_is_kept(model, tmp_path):
    model.config.max_tokens = 20
    try:
        read = reader(export.to_onnx(model, tmp_path / "graph"))
        (expected,) = reading.logits(model, [documents()[10]])
    finally:
        model.config.max_tokens = None
    assert np.abs(read(documents()[10])[0] - expected[0].numpy()).max() < 1e-4


def test_eight_bits_change_scores_a_little_and_make_the_graph_smaller(model, exported, tmp_path):
    small = export.to_onnx(model, tmp_path / "graph", int8=True)
    whole, part = reader(exported), reader(small)
    texts = documents()[:40]
    apart = [np.abs(whole(text)[1] - part(text)[1]).max() for text in texts]
    assert 0 < np.mean(apart) < 0.1
    names = sorted(path.name for path in small.iterdir())
    assert names == ["contents.json", "export.json", "model.onnx", "tokenizer.json", "words.json"]


def test_eight_bits_keep_planted_phrases(corpus, backbone_folder, tmp_path):
    model = with_phrases(corpus, backbone_folder, "evidence+phrases+linear", tmp_path)
    small = export.to_onnx(model, tmp_path / "graph", int8=True)
    assert (small / "phrases.json").is_file()
    read, texts = reader(small), documents()[:40]
    expected = torch.cat(list(reading.logits(model, texts))).numpy()
    apart = np.abs(np.stack([read(text)[0] for text in texts]) - expected)
    assert 0 < apart.mean() < 0.05 * expected.std()


def test_a_folder_of_something_else_is_not_replaced(model, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no onnx export"):
        export.to_onnx(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_credentialed_model_is_exported_into_the_data_folder_alone(model, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANT_HOME", str(tmp_path / "home"))
    model.config.credentialed = True
    try:
        with pytest.raises(PrivacyError):
            export.to_onnx(model, tmp_path / "graph")
    finally:
        model.config.credentialed = False


def test_models_that_the_graph_cannot_express_are_refused(model, prepared, tmp_path):
    model.decoder.keep = 3
    try:
        with pytest.raises(ValueError, match="has inattention"):
            export.to_onnx(model, tmp_path / "graph")
    finally:
        model.decoder.keep = None
    made = ingredients(prepared, "random", RunConfig(), progress=False)
    bare: PlantModel = build_model(prepared, made)
    with pytest.raises(ValueError, match="has no backbone"):
        export.to_onnx(bare, tmp_path / "graph")
    assert not (tmp_path / "graph").exists()
