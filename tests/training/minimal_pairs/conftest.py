"""A random masked language model whose words have several pieces, and pairs in its words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sleep", "##ing", "dog", "bark", "is", "."]
PAIRS = [
    ("The cats sleep.", "The cats sleeps."),
    ("The dogs bark.", "The dogs barks."),
    ("The cat is sleeping.", "The cat sleeping is."),
    ("Dogs", "Cats"),
]


def _write(directory: Path, kind: str, **more: object) -> str:
    (directory / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        # Weights of the usual 0.02 would give all tokens nearly the same probability.
        initializer_range=0.5,
        **more,
    )
    getattr(transformers, kind)(config).save_pretrained(directory)
    transformers.BertTokenizer(vocab=str(directory / "vocab.txt")).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def masked_lm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Hugging Face directory of BertForMaskedLM."""
    return _write(tmp_path_factory.mktemp("masked_lm"), "BertForMaskedLM")


@pytest.fixture(scope="session")
def left_to_right(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Hugging Face directory of BertLMHeadModel."""
    return _write(tmp_path_factory.mktemp("left_to_right"), "BertLMHeadModel", is_decoder=True)


@pytest.fixture
def blimp_like(tmp_path: Path) -> Path:
    """Two files as BLiMP's, one of which spells its field differently."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, field, rows in (("agreement", "syntax_semantics", PAIRS[:2]), ("order", "syntax/semantics", PAIRS[2:])):
        lines = [
            json.dumps({"sentence_good": good, "sentence_bad": bad, "UID": name, "field": field}) for good, bad in rows
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "README.md").write_text("not pairs")
    return folder
