"""Fixtures shared by the tests: a backbone, a corpus and their preparation, all small enough for a
second of one core.

The backbone is a real BERT with random weights and a WordPiece tokenizer, saved as a user would
save one and read by `loading.load`. In the corpus labels depend on words, so that learning can be
told from guessing; it holds rare labels, a label that only test documents carry and a document
without any token.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch

# read when triton is imported: without a GPU its kernels run in the interpreter
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

THEMES = {
    "heart": ("pulse", "valve", "beat"),
    "lung": ("cough", "breath", "smoke"),
    "skin": ("rash", "itch", "burn"),
    "bone": ("fracture", "joint", "cast"),
    "eye": ("vision", "blind", "lens"),
    "rare gold": ("gold",),  # three training documents
    "rare tin": ("tin",),  # one training document
    "only test": ("comet",),  # none
}
COMMON = tuple(THEMES)[:5]
FILLER = (
    "the",
    "patient",
    "was",
    "seen",
    "today",
    "and",
    "with",
    "again",
    "no",
    "sign",
    "of",
    "some",
    "more",
    "left",
)
OPERATIONS = 300  # sums of 24 or 32 in the tiny backbone, attention over 16 places, and the head
WINDOW = 14  # real tokens a forward pass of the tiny backbone: 16 positions less two special tokens


def tiny_corpus():
    """60 train, 20 dev and 20 test documents of 6 to 40 words; document 7 is blank."""
    from plantlib import Corpus

    rng = random.Random(0)
    split = ["train"] * 60 + ["dev"] * 20 + ["test"] * 20
    texts, labels = [], []
    for i in range(100):
        own = rng.sample(COMMON, rng.choice((1, 1, 2)))
        own += ["rare gold"] if i in (3, 17, 41, 63, 85, 90) else []
        own += ["rare tin"] if i in (22, 70, 88) else []
        own += ["only test"] if i in (81, 95) else []
        found = [
            word for label in own for word in rng.sample(THEMES[label], min(2, len(THEMES[label])))
        ]
        found += rng.choices(FILLER, k=rng.choice((5, 12, 36)))
        rng.shuffle(found)
        texts.append("  " if i == 7 else " ".join(found))
        labels.append(own)
    return Corpus.from_lists("tiny", [f"d{i:03d}" for i in range(100)], texts, labels, split)


def tiny_tokenizer(limit: int = WINDOW + 2):
    """WordPiece over the corpus's words, with letters for everything else; [CLS] and [SEP] around a
    text.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,<>&/"
    pieces = [
        *letters,
        *("##" + c for c in letters),
        *FILLER,
        *(w for words in THEMES.values() for w in words),
    ]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(pieces)]
    tokenizer = Tokenizer(
        models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=limit,
    )


def save_backbone(folder: Path, model, tokenizer) -> str:
    """Write what `loading.load` reads; the folder as text."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory) -> str:
    """Folder of a one-layer BERT, hidden size 24, random weights."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=WINDOW + 2,
    )
    return save_backbone(
        tmp_path_factory.mktemp("backbone") / "tiny-bert", BertModel(config), tokenizer
    )


@pytest.fixture
def backbone(backbone_folder):
    """The tiny backbone, loaded afresh."""
    from plantlib.backbones import loading

    return loading.load(backbone_folder)


@pytest.fixture(scope="session")
def corpus():
    return tiny_corpus()


@pytest.fixture(scope="session")
def prepared(corpus, backbone_folder, tmp_path_factory):
    """The corpus made ready on the tiny backbone; read it, do not change it."""
    from plantlib import prepare

    root = tmp_path_factory.mktemp("artefacts")
    return prepare(corpus, backbone=backbone_folder, max_tokens=None, root=root, progress=False)
