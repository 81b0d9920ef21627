"""The table of chunks against a regular expression, with edges at every place within words and blocks of bytes."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.wordpiece import chunk_table
from pipelines.wordpiece.chunk_table import ChunkTable

CHUNK = re.compile(rb"[!-/:-@\[-`{-~]|[^ \t\r\n!-/:-@\[-`{-~]+")
LENGTHS = [1, 7, 8, 9, 14, 15, 16, 17, 23, 24, 25, 31, 32, 33, 63, 64, 65, 127, 129]


def chunks_of(text: str, lowercase: bool) -> list[bytes]:
    raw = text.encode()
    return CHUNK.findall(raw.lower() if lowercase else raw)


def chunks_of_ours(table: ChunkTable, texts: pa.Array) -> list[list[bytes]]:
    numbers, offsets = table.chunk_numbers(texts)
    assert len(offsets) == len(texts) + 1
    assert offsets[0] == 0
    assert offsets[-1] == len(numbers)
    keys = [table.key(number).encode() for number in range(table.size)]
    assert len(keys) == len(set(keys))
    return [[keys[number] for number in numbers[first:last]] for first, last in pairwise(offsets)]


PIECES = st.sampled_from(
    [*" \t\r\n!/:@[`{~09azAZ\x00\x1f\x7f\x80\xa0", "\u00e9", "\u6771", "\U0001f600", "abcdefg", "HIJKLMNO", "x" * 15]
)
TEXTS = st.lists(
    st.text(st.characters(codec="utf-8"), max_size=40) | st.lists(PIECES, max_size=30).map("".join), max_size=12
)


@pytest.mark.slow
@pytest.mark.parametrize("lowercase", [True, False])
@settings(max_examples=300, deadline=None)
@given(texts=TEXTS, group_bytes=st.sampled_from([1, 70, 1 << 18]), first=st.integers(0, 3))
def test_any_texts(lowercase: bool, texts: list[str], group_bytes: int, first: int) -> None:
    array = pa.array(texts, pa.string())[first:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_table, "_GROUP_BYTES", group_bytes)
        patch.setattr(chunk_table, "_FIRST_SLOTS", 8)
        table = ChunkTable(lowercase)
        expected = [chunks_of(text, lowercase) for text in texts[first:]]
        assert chunks_of_ours(table, array) == expected
        assert chunks_of_ours(table, array) == expected


@pytest.mark.parametrize("length", LENGTHS)
def test_every_length_at_every_place(length: int) -> None:
    word = ("abcdefghijklmnopqrstuvwxyz" * 6)[:length]
    texts = [
        " " * before + word + after for before in range(70) for after in ("", " ", ".", "\n", " B", ".c", "\u00e9")
    ]
    assert chunks_of_ours(ChunkTable(True), pa.array(texts)) == [chunks_of(text, True) for text in texts]
    last = pa.array([*texts, word])[-1:]
    assert chunks_of_ours(ChunkTable(True), last) == [[word.encode()]]


@pytest.mark.slow
@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_that_differ_in_one_byte_are_told_apart(length: int) -> None:
    words = ["a" * place + other + "a" * (length - place - 1) for place in range(length) for other in "bq\x00\x10\x7f"]
    words += [word + "\u00e9" for word in words]
    words += ["a" * (length + more) for more in (0, 1, 2)] + ["\x00" * (length + more) for more in (0, 1, 2)]
    words = list(dict.fromkeys(words))
    table = ChunkTable(True)
    for texts in (words, words[::-1]):
        assert chunks_of_ours(table, pa.array(texts)) == [[word.encode()] for word in texts]
    assert table.size == len(words)


def test_long_chunks_with_equal_hashes_are_told_apart() -> None:
    bits, multiplier = (1 << 64) - 1, int(chunk_table._MULTIPLIER)

    def hash_of(word: bytes) -> int:
        product = int.from_bytes(word, "little") * multiplier & bits
        return product ^ (product >> 32)

    # The hash of two words is one of (hash of the first) ^ second, so a second word can make up for another first one.
    first, second = b"abcdefgh", b"ijklmnop"
    target = hash_of(first) ^ int.from_bytes(second, "little")
    others = (f"{number * 0x9E3779B1 % (1 << 32):08x}".encode() for number in range(1 << 20))
    pairs = ((other, (hash_of(other) ^ target).to_bytes(8, "little")) for other in others)
    other, made_up = next(pair for pair in pairs if pair[1].isascii() and CHUNK.fullmatch(pair[1]))
    texts = [(head + tail).decode() for head in (first + second, other + made_up) for tail in (b"", b"x", b"tail" * 5)]
    assert chunks_of_ours(ChunkTable(False), pa.array(texts)) == [[text.encode()] for text in texts]


def test_a_wide_character_at_every_place() -> None:
    texts = [
        "a" * before + character + "B" * after
        for character in "\u00e9\u6771\U0001f600"
        for before in range(20)
        for after in (0, 1, 9)
    ]
    texts += [f"{'a' * before} {text}" for text in ("\u0130x", "\u2028") for before in range(70)]
    assert chunks_of_ours(ChunkTable(True), pa.array(texts)) == [chunks_of(text, True) for text in texts]


def test_trimming_keeps_the_older_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_table, "_MAX_CHUNKS", 1000)
    table = ChunkTable(True)
    words = [f"word{number}{'x' * (number % 20)}" for number in range(3000)]
    first, _ = table.chunk_numbers(pa.array(words[:1000]))
    table.trim()
    assert table.size == 1000
    table.chunk_numbers(pa.array(words))
    table.trim()
    assert table.size == 500
    again, _ = table.chunk_numbers(pa.array(words))
    assert np.array_equal(again[:500], first[:500])
    assert table.size == 3000
    monkeypatch.setattr(chunk_table, "_MAX_CHUNKS", 1 << 20)
    monkeypatch.setattr(chunk_table, "_MAX_BYTES", 10_000)
    table.trim()
    assert table.key_offsets[table.size] <= 5000 < table.key_offsets[table.size] + 40
    assert chunks_of_ours(table, pa.array(words)) == [[word.encode()] for word in words]
