"""The vocabulary trainer against a reference that recounts all pairs for each merge."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.preprocessing.references import train_wordpiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizerFast

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, verify_file
from pipelines.contract.schemas import SPECIAL_TOKENS
from pipelines.results.builds import open_build
from pipelines.settings.vocabulary import VocabularyConfig
from pipelines.vocabularies.making import CompleteVocabulary, Training
from pipelines.wordpiece.reference_tokenizer import build_tokenizer
from pipelines.wordpiece.tokenizer import WordPieceTokenizer
from pipelines.wordpiece.trainer import Layout, reserved_tokens, train
from pipelines.wordpiece.word_counts import count_words, merge_counts

LAYOUTS: list[Layout] = ["compact", "bert"]


def trained(word_counts: dict[str, int], size: int, alphabet_size: int = 1000, layout: Layout = "compact") -> list[str]:
    words = pa.array(list(word_counts), pa.string())
    counts = np.array(list(word_counts.values()), np.int64)
    return train(words, counts, size, alphabet_size=alphabet_size, layout=layout)


def alphabet_of(word_counts: dict[str, int], layout: Layout = "compact") -> list[str]:
    heads = sorted({character for word in word_counts for character in word})
    tails = sorted({character for word in word_counts for character in word[1:]})
    return [*reserved_tokens(layout), *heads, *("##" + character for character in tails)]


def written(directory: Path, words: pa.Table, config: VocabularyConfig) -> Manifest:
    """Output of job 2 for word counts: `vocab.txt` and `tokenizer.json` in `directory`."""
    key = StageKey("vocabulary", 1, config, {})
    open_build(str(directory), key)
    (manifest,) = CompleteVocabulary(str(directory), key, Training(config)).process(words)
    return manifest


WORDS = st.dictionaries(st.text("abc", min_size=1, max_size=9), st.integers(1, 1 << 40), min_size=1, max_size=40)


@settings(max_examples=300, deadline=None)
@given(word_counts=WORDS, more=st.integers(0, 40))
def test_merges_equal_the_reference(word_counts: dict[str, int], more: int) -> None:
    start = alphabet_of(word_counts)
    expected = train_wordpiece(word_counts, start, len(start) + more, min_count=2)
    assert trained(word_counts, len(expected)) == expected


def test_counts_beyond_32_bits() -> None:
    assert trained({"ab": 1 << 40, "ac": 1 << 39}, 11)[-1] == "ab"


def test_order_of_words_does_not_matter() -> None:
    generator = random.Random(1)
    word_counts = {
        "".join(generator.choices("abcdefghij", k=generator.randint(1, 10))): generator.randint(1, 50)
        for _ in range(3000)
    }
    shuffled = list(word_counts.items())
    generator.shuffle(shuffled)
    assert trained(word_counts, 600) == trained(dict(shuffled), 600)


def test_rare_characters_are_left_out() -> None:
    tokens = trained({"aaa": 10, "aab": 9, "aaz": 1}, 9, alphabet_size=2)
    assert tokens[5:] == ["a", "b", "##a", "##b"]
    assert WordPieceTokenizer(tokens, lowercase=True).tokenize(pa.array(["z"])).input_ids.tolist() == [1]


def test_too_large_and_too_small_sizes_say_what_to_do() -> None:
    with pytest.raises(InputError, match=r"vocabulary\.size = 50: .*only \d+ entries.*min_count"):
        trained({"ab": 2}, 50)
    with pytest.raises(InputError, match=r"vocabulary\.size = 6: .*alphabet alone need 8"):
        trained({"ab": 2}, 6)


def test_vocabulary_loads_in_tokenizers_and_splits_a_word() -> None:
    tokens = trained({"lower": 5, "lowest": 5, "newer": 5}, 26)
    assert len(tokens) == len(set(tokens)) == 26
    assert build_tokenizer(tokens, True, None).encode("lower", add_special_tokens=False).tokens[0].startswith("low")


def test_word_counts_are_those_of_the_pre_tokeniser() -> None:
    texts = pa.array(["Don't stop, DON'T!", "na\u00efve cafe\u0301 \u6771\u4eac", "a\x00b \x7f"])
    table = count_words(texts, lowercase=True, strip_accents=None)
    counts = dict(zip(table["word"].to_pylist(), table["count"].to_pylist(), strict=True))
    expected = {"don": 2, "'": 2, "t": 2, "stop": 1, ",": 1, "!": 1, "naive": 1, "cafe": 1, "\u6771": 1, "\u4eac": 1}
    assert counts == expected | {"ab": 1}
    assert table["word"].to_pylist() == sorted(counts)


def test_merging_counts_adds_up() -> None:
    one, two = (count_words(pa.array([text]), True, None) for text in ("a b b", "b c"))
    assert merge_counts([one, two]).to_pydict() == {"word": ["a", "b", "c"], "count": [1, 3, 1]}
    assert merge_counts([]).num_rows == 0


def test_bert_layout_by_rule() -> None:
    tokens = reserved_tokens("bert")
    assert [tokens.index(token) for token in SPECIAL_TOKENS] == [0, 100, 101, 102, 103]
    assert tokens[1:100] == [f"[unused{number}]" for number in range(99)]
    assert tokens[104:] == [f"[unused{number}]" for number in range(99, 994)]
    assert len(tokens) == 999


def test_bert_layout_is_the_released_one(shared_data: Path) -> None:
    released = (shared_data / "vocab" / "bert-base-uncased-vocab.txt").read_text("utf-8").split("\n")
    assert reserved_tokens("bert") == released[:999]
    assert released[999] == "!"
    cased = (shared_data / "vocab" / "bert-base-cased-vocab.txt").read_text("utf-8").split("\n")
    assert [cased.index(token) for token in SPECIAL_TOKENS] == [0, 100, 101, 102, 103]


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=80, deadline=None)
@given(word_counts=WORDS, more=st.integers(0, 40), seed=st.integers(0, 1 << 20))
def test_every_layout_is_exact_and_blind_to_order(
    layout: Layout, word_counts: dict[str, int], more: int, seed: int
) -> None:
    start = alphabet_of(word_counts, layout)
    expected = train_wordpiece(word_counts, start, len(start) + more, min_count=2)
    shuffled = list(word_counts.items())
    random.Random(seed).shuffle(shuffled)
    assert trained(word_counts, len(expected), layout=layout) == expected
    assert trained(dict(shuffled), len(expected), layout=layout) == expected


def test_bert_layout_with_too_small_a_size_says_what_to_do() -> None:
    with pytest.raises(
        InputError, match=r"vocabulary\.size = 999: reserved tokens \(999 with layout = 'bert'\)"
    ) as info:
        trained({"ab": 2}, 999, layout="bert")
    assert "\n" not in str(info.value)
    assert len(trained({"ab": 2}, 1003, layout="bert")) == 1003


TEXTS = [
    "The lower, the newer: low [MASK] [unused5]",
    "caf\u00e9s are newest \u6771\u4eac",
    "[PAD] lowest?",
    "widest lows",
    "a vocabulary comes from counts of words, and counts come from shards in any order",
] * 3
PROBES = ["newest [unused5] [MASK] lower", "[CLS]low[SEP]", "\u6771\u4eac caf\u00e9 \u2603", "[unused993] [PAD]"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_job_writes_what_tokenizers_and_transformers_read(tmp_path: Path, layout: Layout) -> None:
    size = len(reserved_tokens(layout)) + 96
    config = VocabularyConfig(size=size, layout=layout)
    manifest = written(tmp_path / "one", count_words(pa.array(TEXTS), True, None), config)
    shards = [count_words(pa.array(TEXTS[start::5]), True, None) for start in (3, 0, 4, 1, 2)]
    again = written(tmp_path / "two", merge_counts(shards), config)
    assert manifest == again
    for file in again.files:
        verify_file(str(tmp_path / "two"), file)

    tokens = (tmp_path / "one" / "vocab.txt").read_text("utf-8").split("\n")[:-1]
    assert len(tokens) == len(set(tokens)) == size == manifest.statistics["size"]
    ours = WordPieceTokenizer(tokens, lowercase=True)
    from_json = Tokenizer.from_file(str(tmp_path / "one" / "tokenizer.json"))
    from_text = BertTokenizerFast(vocab=str(tmp_path / "one" / "vocab.txt"))
    from_directory = AutoTokenizer.from_pretrained(str(tmp_path / "one"))
    assert from_json.get_vocab_size() == len(from_text) == len(from_directory) == size
    assert from_text.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [tokens.index(token) for token in SPECIAL_TOKENS]
    for peer in (from_json, from_text.backend_tokenizer, from_directory.backend_tokenizer):
        assert peer.encode("low [MASK] [unused5]").ids.count(tokens.index("[MASK]")) == 1
        peer.encode_special_tokens = True
        for text in PROBES:
            ids = ours.tokenize(pa.array([text])).input_ids.tolist()
            assert peer.encode(text, add_special_tokens=False).ids == ids
            assert not {*ids} & {tokens.index(token) for token in reserved_tokens(layout) if token != "[UNK]"}
