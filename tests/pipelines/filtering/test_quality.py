"""Quality rules against slow versions of the papers' sentences; every row of the table; the verdict, and the job."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines import shard_corpus
from pipelines.contract.manifest import read_manifest
from pipelines.documents.summary import closing_lines
from pipelines.filtering.passage import Passage
from pipelines.filtering.quality import QualityFilter, Verdict
from pipelines.filtering.word_grams import WordGrams
from pipelines.jobs.arrow_files import read_table
from pipelines.settings.documents import DocumentsConfig, SourceConfig
from pipelines.settings.quality import QUALITY_RULES, RULE_SETS, QualityConfig

PROSE = (
    "The committee met in the old town hall on Monday morning. It had been asked to look at the plans of the new "
    "bridge, which many people in the valley want to have. Nobody spoke against them, and that was a surprise to all. "
    "After two hours of questions the members voted with one voice, and the work is to begin before the winter comes."
)


def verdict(text: str, *rules: str, **limits: float) -> Verdict:
    return QualityFilter(QualityConfig(rules=rules, limits=limits)).judge(text)


def reason_of(text: str, *rules: str) -> str | None:
    return verdict(text, *rules).reason


def share_of_duplicates(words: list[str], size: int) -> float:
    """Characters in all n-grams that occur more than once, each counted once."""
    grams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    counts = Counter(grams)
    covered = {place for start, gram in enumerate(grams) if counts[gram] > 1 for place in range(start, start + size)}
    return sum(len(words[place]) for place in covered) / max(1, sum(map(len, words)))


def shares_of_most_frequent(words: list[str], size: int) -> set[float]:
    """Characters in each of the n-grams that occur most often and, of these, have most characters."""
    grams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    counts = Counter(grams)
    most = max(counts.values(), default=0)
    if most < 2:
        return {0.0}
    longest = max(len("".join(gram)) for gram, count in counts.items() if count == most)
    shares = set()
    for candidate, count in counts.items():
        if count == most and len("".join(candidate)) == longest:
            places = {p for start, gram in enumerate(grams) if gram == candidate for p in range(start, start + size)}
            shares.add(sum(len(words[place]) for place in places) / sum(map(len, words)))
    return shares


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "ccc", "d", "ñe"]), max_size=40), st.integers(2, 10))
def test_shares_of_n_grams_are_those_of_a_slow_version(words: list[str], size: int) -> None:
    grams = WordGrams(words)
    assert grams.duplicate_share(size) == pytest.approx(share_of_duplicates(words, size))
    assert any(grams.top_share(size) == pytest.approx(share) for share in shares_of_most_frequent(words, size))


def test_shares_of_a_long_text_are_those_of_a_slow_version() -> None:
    generator = random.Random(3)
    words = [f"w{int(generator.paretovariate(1))}" for _ in range(3000)]
    grams = WordGrams(words)
    for size in (10, 2, 5, 3):
        assert grams.duplicate_share(size) == pytest.approx(share_of_duplicates(words, size))


BREAKING = {
    "terminal-punctuation": "A line that does not end",
    "line-words": "Four words are here.",
    "javascript": "You must switch JavaScript on to see this.",
    "policy-notice": "This site uses cookies to make it better.",
    "lorem-ipsum": f"{PROSE} Lorem ipsum dolor sit amet.",
    "curly-bracket": f"{PROSE} if (x) {{",
    "min-sentences": "There is one sentence. And here is the second (of two)!",
    "min-words": " ".join(PROSE.split()[:49]),
    "max-words": "word " * 100_001,
    "min-word-length": "I am it. " * 20,
    "max-word-length": "Donaudampfschifffahrt " * 60,
    "hash-ratio": PROSE + " # # # # # # # # # #",
    "ellipsis-ratio": PROSE + " ... … ... ... ... ... ... ...",
    "bullet-lines": "- one\n• two\n* three\n- four\n- five\n- six\n- seven\n- eight\n- nine\n\n- ten",
    "ellipsis-lines": "The first line has an end.\nThe second ...\nThe third line.",
    "alphabetic-words": "The list of 12 45 and 7 * 9 - to",
    "stop-words": "Der Ausschuss traf sich am Montag, und the Sitzung dauerte lange.",
    "duplicate-lines": "one\ntwo\nthree\nfour\nfive\nsix\none\ntwo\nthree",
    "duplicate-line-characters": "a long line that repeats\na\nb\nc\nd\na long line that repeats",
    "duplicate-paragraphs": "one\n\ntwo\n\nthree\n\nfour\n\nfive\n \nsix\n\none\n\ntwo\n\nthree",
    "duplicate-paragraph-characters": "a long one that\nrepeats\n\na\n\nb\n\nc\n\nd\n\na long one that\nrepeats",
    "top-2-gram": "to be " * 10 + PROSE[:100],
    "top-3-gram": "or not to " * 12 + PROSE,
    "top-4-gram": "to be or not " * 9 + PROSE,
    **{f"duplicate-{size}-grams": f"{PROSE[:110]} {PROSE}" for size in range(5, 11)},
}


@pytest.mark.parametrize("name", QUALITY_RULES)
def test_every_rule_keeps_prose_and_drops_what_breaks_it(name: str) -> None:
    text = BREAKING[name]
    assert verdict(PROSE, name) == Verdict(PROSE, 0)
    if QUALITY_RULES[name].unit == "line":
        assert verdict(f"{text}\n\n{PROSE}", name) == Verdict(f"\n{PROSE}", 1)
    else:
        assert verdict(text, name).reason == f"quality-{name}"
        others = [other for other in RULE_SETS["gopher"] if other != name]
        assert verdict(text, *others).reason != f"quality-{name}"


def test_limits_are_reached_before_they_are_broken() -> None:
    words = PROSE.split()
    assert reason_of(" ".join(words[:50]), "min-words") is None
    assert verdict(" ".join(words[:49]), "min-words").detail == "49, must be at least 50"
    assert reason_of("w " * 100_000, "max-words") is None
    assert reason_of("a. b? c!", "min-sentences") is None
    assert reason_of('He said "one." (Two.) Three 3.5 ok', "min-sentences") == "quality-min-sentences"
    assert reason_of("hello #" + " w" * 9, "hash-ratio") is None
    assert reason_of("top top", "top-2-gram") is None
    assert reason_of("東京は日本の首都。人口は多い。川もある。", "min-sentences") is None


def test_documents_are_judged_by_the_lines_that_stay() -> None:
    menu = "Home\nLog in {here}\nThis site uses cookies.\n"
    assert verdict(menu + PROSE, "c4") == Verdict(PROSE, 3)
    assert verdict(menu + PROSE, "curly-bracket").reason == "quality-curly-bracket"
    assert verdict(menu, "c4") == Verdict("", 3, "quality-min-sentences", "0, must be at least 3")
    assert verdict("", "gopher").reason == "quality-min-words"
    assert verdict("", "gopher-repetition") == Verdict("", 0)


def test_a_passage_is_split_once() -> None:
    passage = Passage(" One line.\n\t\n\nTwo  words\nmore \n")
    assert passage.words == ["One", "line.", "Two", "words", "more"]
    assert passage.lines == ["One line.", "Two  words", "more"]
    assert passage.paragraphs == ["One line.", "Two  words\nmore"]


def test_settings_are_checked_and_left_out_of_keys_that_have_none() -> None:
    source = SourceConfig(inputs=("x",))
    assert "quality" not in DocumentsConfig(sources=(source,)).identity()
    chosen = DocumentsConfig(sources=(source,), quality=QualityConfig(rules=("gopher",), limits={"min-words": 20}))
    assert chosen.identity()["quality"] == {"rules": ["gopher"], "limits": {"min-words": 20}}
    assert QualityConfig(rules=("top-4-gram", "c4")).chosen == (*RULE_SETS["c4"], "top-4-gram")
    with pytest.raises(ValidationError, match="limits names 'top-4-gram', which rules does not choose"):
        QualityConfig(rules=("gopher",), limits={"top-4-gram": 0.5})
    with pytest.raises(ValidationError, match="min-words"):
        QualityConfig(rules=("min-word",))
    assert sorted(BREAKING) == sorted(QUALITY_RULES) == sorted(name for names in RULE_SETS.values() for name in names)


@pytest.mark.slow
def test_a_job_counts_what_the_rules_drop(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for number in range(20):
        (tmp_path / f"corpus/good{number}.txt").write_text(f"Menu {number}\n\n{PROSE} Its number is {number}.")
    (tmp_path / "corpus/few.txt").write_text("Too few words are here. It is a pity. There is no more.")
    (tmp_path / "corpus/code.txt").write_text(PROSE.replace("bridge", "{bridge"))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[run]\nworkspace = "{tmp_path}/ws"\nworkers = 1\n[documents]\nnum_shards = 2\nheldout_share = 0.2\n'
        f'quality = {{rules = ["c4", "gopher"]}}\n[[documents.sources]]\ninputs = ["{tmp_path}/corpus"]\n'
    )
    shard_corpus.run([str(recipe)])
    directory = tmp_path / "ws/documents"
    manifest = read_manifest(str(directory))
    assert manifest is not None
    assert manifest.statistics["rejected_by_reason"] == {"quality-curly-bracket": 1, "quality-min-words": 1}
    assert manifest.statistics["cleaning"]["low_quality_lines_dropped"] == 20
    assert manifest.config["quality"]["rules"] == ["c4", "gopher"]
    with gzip.open(directory / "rejected.jsonl.gz", "rt") as stream:
        details = {row["source"]: row["detail"] for row in map(json.loads, stream)}
    assert details == {
        "corpus/code.txt": "1, must be at most 0",
        "corpus/few.txt": "13, must be at least 50",
    }
    rows = [row for path in directory.glob("*-of-*.arrow") for row in read_table(str(path)).to_pylist()]
    assert not any("Menu" in sentence for row in rows for sentence in row["sentences"])
    (line,) = closing_lines(manifest, DocumentsConfig(sources=(SourceConfig(inputs=("x",)),), warn_rejected_share=0.0))
    assert "1 quality-curly-bracket (corpus/code.txt: 1, must be at most 0)" in line
