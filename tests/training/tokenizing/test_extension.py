"""Which vocabularies continue an encoder's, and the pieces that new words had there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast

from pipelines.contract.errors import InputError
from training.tokenizing.extension import new_entries

WORDS = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##able", "##seen", "a", "##b"]


def write_tokenizer(directory: Path, words: list[str], lowercase: bool = True, **settings: Any) -> str:
    directory.mkdir()
    Path(directory, "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    tokenizer = BertWordPieceTokenizer({word: index for index, word in enumerate(words)}, lowercase=lowercase)
    Path(directory, "tokenizer.json").write_text(tokenizer.to_str())
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase, **settings}
    Path(directory, "tokenizer_config.json").write_text(json.dumps(config))
    return str(directory)


def test_new_words_stand_in_unused_lines_or_at_the_end(tmp_path: Path) -> None:
    encoder = write_tokenizer(tmp_path / "encoder", WORDS)
    assert new_entries(encoder, write_tokenizer(tmp_path / "same", WORDS)) == {}
    longer = [WORDS[0], "unseen", *WORDS[2:], "ab", "unable", "é"]
    found = new_entries(encoder, write_tokenizer(tmp_path / "longer", longer))
    reference = BertTokenizerFast.from_pretrained(encoder)
    assert found == {
        token_id: tuple(reference(word, add_special_tokens=False).input_ids)
        for token_id, word in ((1, "unseen"), (12, "ab"), (13, "unable"), (14, "é"))
    }
    assert found[1] == (7, 9)
    assert found[14] == (3,)  # no piece: what the encoder saw was [UNK]


def test_how_a_default_is_written_is_no_difference(tmp_path: Path) -> None:
    encoder = write_tokenizer(tmp_path / "encoder", WORDS)
    os.remove(f"{encoder}/tokenizer.json")  # as in the first releases: vocab.txt alone
    assert new_entries(encoder, write_tokenizer(tmp_path / "same", WORDS, strip_accents=True)) == {}


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (WORDS[:-1], {}, r"entry 11 is None, the encoder's is '##b'"),
        ([*WORDS[:-1], "##c"], {}, r"entry 11 is '##c', the encoder's is '##b'"),
        (WORDS, {"lowercase": False}, r"normalizer is \{.*'lowercase': False"),
        ([*WORDS, "##ness"], {}, r"the new entry '##ness' \(id 12\) is no word"),
    ],
)
def test_other_differences_are_refused_with_both_names(
    tmp_path: Path, words: list[str], settings: dict[str, Any], message: str
) -> None:
    encoder = write_tokenizer(tmp_path / "encoder", WORDS)
    with pytest.raises(InputError, match=message) as caught:
        new_entries(encoder, write_tokenizer(tmp_path / "vocabulary", words, **settings))
    assert str(caught.value).startswith(f"{tmp_path}/vocabulary: ")
    assert encoder in str(caught.value) or "##ness" in message
    assert "\n" not in str(caught.value)
