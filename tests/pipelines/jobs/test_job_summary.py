"""Closing lines of the jobs, and corpora that lose much, run end to end."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.preprocessing.small_run import write_corpus

from pipelines import build_examples, shard_corpus, train_vocabulary
from pipelines.contract.manifest import Manifest, read_manifest, record_of
from pipelines.jobs.summary import examples_summary, vocabulary_summary
from pipelines.validation.workspace import validate

RECIPE = """
run = {{name = "small", workspace = "{workspace}", workers = 1}}
documents = {{num_shards = {num_shards}, heldout_share = {heldout_share}, sources = [{{inputs = ["{corpus}/*.txt"]}}]}}
vocabulary = {{size = {size}, alphabet_size = {alphabet_size}, min_count = 1}}
examples = {{passes = 1, lengths = [{{max_seq_length = 32, max_predictions_per_seq = 5}}], masking = "{masking}"}}
"""


class Corpus:
    """A small corpus with its workspace and recipe."""

    def __init__(self, root: Path, texts: list[str], **settings: Any):
        self.workspace = root / "workspace"
        (root / "corpus").mkdir()
        for number, text in enumerate(texts):
            (root / "corpus" / f"{number:03d}.txt").write_text(text)
        defaults = {"num_shards": 2, "heldout_share": 0.3, "size": 300, "alphabet_size": 1000, "masking": "static"}
        self._recipe = root / "recipe.toml"
        values = {**defaults, **settings, "workspace": self.workspace, "corpus": root / "corpus"}
        self._recipe.write_text(RECIPE.format(**values))

    def run(self, *jobs: Any, **settings: Any) -> None:
        for job in jobs:
            job.run(
                [str(self._recipe), *(f"--set={key.replace('__', '.')}={value}" for key, value in settings.items())]
            )

    def manifest(self, stage: str) -> Manifest:
        manifest = read_manifest(str(self.workspace / stage))
        assert manifest is not None
        return manifest


def chinese(num_texts: int, num_characters: int, is_even: bool = False) -> list[str]:
    """Sentences of characters with the frequencies of a natural language, or all equally frequent."""
    generator = random.Random(5)
    characters = [chr(0x4E00 + number) for number in range(num_characters)]
    weights = [1.0 if is_even else 1 / (1 + number) for number in range(num_characters)]
    return [
        "".join("".join(generator.choices(characters, weights, k=12)) + "\u3002" for _ in range(20))
        for _ in range(num_texts)
    ]


def test_a_sound_run_is_summed_up_in_one_line_a_job(built: tuple[Path, str]) -> None:
    vocabulary, examples = (read_manifest(str(built[0] / stage)) for stage in ("vocabulary", "examples"))
    assert vocabulary is not None
    assert examples is not None
    (line, *warnings) = vocabulary_summary(vocabulary)
    assert line.startswith("vocabulary: 300 entries from ")
    assert line.endswith(" pieces a word, [UNK] 0.00% of the tokens and 0.00% of the characters")
    assert warnings == []
    line, warning = examples_summary(examples)
    for part in ("examples: length 32: ", "; length 64: ", "% random next", "% of the tokens cut off", " held out"):
        assert part in line
    assert warning.startswith("examples: WARNING: only 13 documents are held out")


@pytest.mark.slow
def test_few_documents_are_said_to_have_no_random_next_sentence(tmp_path: Path) -> None:
    write_corpus(tmp_path / "texts", num_documents=4)
    texts = [path.read_text() for path in sorted((tmp_path / "texts").glob("00*.txt"))]
    corpus = Corpus(tmp_path, texts, num_shards=64, heldout_share=0.0, size=200)
    corpus.run(shard_corpus, train_vocabulary, build_examples)
    validate(str(corpus.workspace))
    lines = examples_summary(corpus.manifest("examples"))[1:]
    assert any("next-sentence accuracy is 1.000 without learning" in line for line in lines)
    assert any("no document is held out" in line and "word-order has no sentences" in line for line in lines)
    assert corpus.manifest("examples").statistics["lengths"]["32"]["random_next"] == 0


@pytest.mark.slow
def test_unknown_characters_are_counted_and_warned_of(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, chinese(20, 400), alphabet_size=150, size=155, masking="whole_word")
    corpus.run(shard_corpus, train_vocabulary, build_examples)
    validate(str(corpus.workspace))
    vocabulary, examples = corpus.manifest("vocabulary"), corpus.manifest("examples")
    share = vocabulary.statistics["unk_share"]
    assert 0.05 < share < 0.3
    (warning,) = vocabulary_summary(vocabulary)[1:]
    assert f"[UNK] is {share:.1%} of all tokens" in warning
    assert "different characters, of which vocabulary.alphabet_size = 150 get an entry; raise it" in warning
    lines = examples_summary(examples)
    facts = examples.statistics["lengths"]["32"]
    assert f"[UNK] {facts['masked_unk_share']:.2%} of what is predicted" in lines[0]
    assert abs(facts["masked_unk_share"] - share) < 0.05
    assert any("whole-word masking has no effect" in line for line in lines)


def test_a_vocabulary_of_mostly_unk_is_refused_and_the_earlier_one_stays(
    tmp_path: Path, error_of: Callable[[Callable[[], Any]], str]
) -> None:
    corpus = Corpus(tmp_path, chinese(20, 400, is_even=True), size=405)
    corpus.run(shard_corpus, train_vocabulary)
    before = corpus.manifest("vocabulary").digest
    message = error_of(lambda: corpus.run(train_vocabulary, vocabulary__alphabet_size=95, vocabulary__size=100))
    assert "of all tokens, and a model would learn nothing else" in message
    assert "vocabulary.alphabet_size = 95 get an entry; raise it" in message
    assert corpus.manifest("vocabulary").digest == before


@pytest.mark.slow
def test_a_vocabulary_of_another_language_is_refused(
    tmp_path: Path, error_of: Callable[[Callable[[], Any]], str]
) -> None:
    corpus = Corpus(tmp_path, chinese(20, 400, is_even=True), size=405)
    corpus.run(shard_corpus, train_vocabulary)
    path = corpus.workspace / "vocabulary" / "vocab.txt"
    tokens = path.read_text().split("\n")[:-1]
    tokens[5:] = [f"word{number}" for number in range(len(tokens) - 5)]
    path.write_text("".join(f"{token}\n" for token in tokens))
    manifest = json.loads((corpus.workspace / "vocabulary" / "manifest.json").read_text())
    manifest["files"] = [
        record_of(str(corpus.workspace / "vocabulary"), file["name"], file["rows"]).model_dump()
        for file in manifest["files"]
    ]
    (corpus.workspace / "vocabulary" / "manifest.json").write_text(json.dumps(manifest))
    message = error_of(lambda: corpus.run(build_examples))
    assert "[UNK] is 100.0% of all tokens, so there is nothing to learn" in message
    assert read_manifest(str(corpus.workspace / "examples")) is None


@pytest.mark.slow
def test_paragraphs_without_stops_are_cut_and_said_to_be(tmp_path: Path) -> None:
    generator = random.Random(4)
    words = ["".join(generator.choices("abcdefghij", k=6)) for _ in range(80)]
    texts = [
        "\n\n".join(" ".join(generator.choices(words, k=200)) + "." for _ in range(6)) + f" {number}"
        for number in range(30)
    ]
    corpus = Corpus(tmp_path, texts, size=100)
    corpus.run(shard_corpus, train_vocabulary, build_examples)
    facts = corpus.manifest("examples").statistics["lengths"]["32"]
    assert facts["tokens_cut_share"] > 0.7
    assert facts["long_sentences"] > 0.8 * facts["sentences"]
    lines = examples_summary(corpus.manifest("examples"))
    assert f"{facts['tokens_cut_share']:.1%} of the tokens cut off" in lines[0]
    assert any("raise max_seq_length in examples.lengths" in line for line in lines)


@pytest.fixture
def error_of() -> Callable[[Callable[[], Any]], str]:
    """The message with which a job ends, with any runner."""

    def error(job: Callable[[], Any]) -> str:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - Beam wraps what a worker raises
            job()
        return str(caught.value)

    return error
