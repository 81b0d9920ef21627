"""Pairs made from held-out documents: one fault each, the same in every run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, record_of
from pipelines.contract.schemas import DOCUMENTS_SCHEMA
from training.minimal_pairs.heldout_pairs import AGREEING, GROUPS, WORD_ORDER, damaged, heldout_pairs

SENTENCES = [
    f"{subject} {verb} {article} {rest} number {number}."
    for number in range(6)
    for subject, verb, article, rest in (
        ("This value", "is", "an", "old"),
        ("these arrays", "are", "a", "new"),
        ("The file", "was", "the", "first"),
        ("It", "returns", "some", "other"),
    )
]


def written(directory: Path, documents: list[list[str]]) -> Manifest:
    """A documents stage of one held-out shard."""
    name = "heldout-00000-of-00001.arrow"
    columns = {
        "doc_id": pa.array([bytes([number]) * 16 for number in range(len(documents))], pa.binary(16)),
        "source": pa.array(["test"] * len(documents)).dictionary_encode(),
        "sentences": pa.array(documents, DOCUMENTS_SCHEMA.field("sentences").type),
    }
    table = pa.table(columns, schema=DOCUMENTS_SCHEMA)
    with pa.OSFile(str(directory / name), "wb") as sink, pa.ipc.new_file(sink, DOCUMENTS_SCHEMA) as writer:
        writer.write_table(table)
    return StageKey("documents", 1, {}, {}).manifest([record_of(str(directory), name, len(documents))], {}, "0")


@pytest.mark.parametrize(
    ("group", "good", "bad"),
    [
        ("verb_agreement", "The values are old.", "The values is old."),
        ("verb_agreement", "Has it changed?", "Have it changed?"),
        ("determiner_agreement", "These arrays grow.", "This arrays grow."),
        ("article", "Give an array.", "Give a array."),
        (WORD_ORDER, "The old value grows.", "The value old grows."),
    ],
)
def test_a_fault_of_each_group(group: str, good: str, bad: str) -> None:
    assert damaged(good.split(), group) == bad


@pytest.mark.parametrize(
    ("group", "sentence"),
    [
        ("verb_agreement", "What the value is."),  # what follows must be a word
        ("verb_agreement", "An island, an isle."),
        ("article", "Option a)"),
        (WORD_ORDER, "Numbers 1 2 3 4."),
        (WORD_ORDER, "It had had."),  # equal words
    ],
)
def test_a_sentence_without_a_place_for_the_fault_is_not_taken(group: str, sentence: str) -> None:
    assert damaged(sentence.split(), group) is None


def test_each_group_has_its_pairs_and_no_sentence_is_used_twice(tmp_path: Path) -> None:
    manifest = written(tmp_path, [SENTENCES[:10], SENTENCES[10:], SENTENCES])
    pairs = heldout_pairs(str(tmp_path), manifest, 3)
    assert Counter(pairs.group) == dict.fromkeys(GROUPS, 3)
    assert len(set(pairs.good)) == len(pairs)
    for good, bad, group in zip(pairs.good, pairs.bad, pairs.group, strict=True):
        changed = [(one, other) for one, other in zip(good.split(), bad.split(), strict=True) if one != other]
        if group == WORD_ORDER:
            assert len(changed) == 2
            assert sorted(good.split()) == sorted(bad.split())
        else:
            ((one, other),) = changed
            assert {one.lower(), other.lower()} in [set(pair) for pair in AGREEING[group]]
            assert one[0].isupper() == other[0].isupper()
    again = heldout_pairs(str(tmp_path), manifest, 3)
    assert (again.good, again.bad) == (pairs.good, pairs.bad)
    assert "batch 0, document 0" in pairs.places[0]


def test_a_sentence_that_the_model_cannot_take_is_passed_over(tmp_path: Path) -> None:
    manifest = written(tmp_path, [SENTENCES])
    pairs = heldout_pairs(str(tmp_path), manifest, 3, lambda sentence: "number 0" not in sentence)
    assert "number 0" in " ".join(heldout_pairs(str(tmp_path), manifest, 3).good)
    assert not [sentence for sentence in (*pairs.good, *pairs.bad) if "number 0" in sentence]
    left = [sentence for sentence in SENTENCES if "number 0" not in sentence]
    (tmp_path / "left").mkdir()
    assert pairs.good == heldout_pairs(str(tmp_path / "left"), written(tmp_path / "left", [left]), 3).good


def test_a_corpus_without_english_has_word_order_only(tmp_path: Path) -> None:
    german = [f"Der alte Hund von Nummer {number} schläft heute wieder sehr lange." for number in range(9)]
    pairs = heldout_pairs(str(tmp_path), written(tmp_path, [german]), 4)
    assert Counter(pairs.group) == {WORD_ORDER: 4}


def test_a_corpus_without_sentences_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no sentence of 5 to 24 words .* documents\.heldout_share"):
        heldout_pairs(str(tmp_path), written(tmp_path, [["Too short."]]), 4)
