"""Near-duplicates against exact Jaccard similarity, in the algorithm and in the job; determinism; off costs nothing."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.preprocessing.small_run import files_below

from pipelines import shard_corpus
from pipelines.contract.manifest import StageKey, read_manifest
from pipelines.documents.minhash import (
    alike_components,
    band_keys,
    band_shape,
    meeting_groups,
    signatures_of,
)
from pipelines.filtering.word_hashes import shingle_hashes
from pipelines.jobs.arrow_files import read_table
from pipelines.settings.documents import DocumentsConfig, NearDuplicatesConfig, SourceConfig

WORDS = [
    f"{first}{second}" for first in ("ka", "lo", "mi", "ren", "tas") for second in ("vu", "pel", "dor", "shi", "an")
]


def shingles(text: str, size: int) -> set[tuple[str, ...]]:
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    size = min(size, len(words))
    if not words:
        return set()
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def jaccard(one: set[Any], two: set[Any]) -> float:
    return len(one & two) / len(one | two)


def text_of(generator: random.Random, num_words: int = 300) -> list[str]:
    return generator.choices(WORDS, k=num_words)


def changed(generator: random.Random, words: list[str], num_changes: int) -> list[str]:
    words = list(words)
    for _ in range(num_changes):
        words[generator.randrange(len(words))] = generator.choice(WORDS)
    return words


def dropped_of(texts: list[str], config: NearDuplicatesConfig) -> set[int]:
    """Which texts are dropped; texts are their own ids, in order."""
    signatures = signatures_of(texts, config)
    keys = band_keys(signatures, band_shape(config))
    rows = np.repeat(np.arange(len(texts), dtype=np.uint64), keys.shape[1])
    groups = meeting_groups(np.column_stack([keys.ravel(), np.zeros_like(rows), rows]))
    kept = alike_components([group[:, 1].tolist() for group in groups], signatures, config.min_similarity)
    return set(np.flatnonzero(kept != np.arange(len(texts))).tolist())


@given(st.text("aB1é _.,\n", max_size=60), st.integers(1, 6))
def test_as_many_shingles_as_a_plain_version_finds(text: str, size: int) -> None:
    assert len(np.unique(shingle_hashes(text, size))) == len(shingles(text, size))


def test_words_without_spaces_are_characters() -> None:
    assert len(shingle_hashes("東京は日本の首都。", 2)) == 7
    assert np.array_equal(shingle_hashes("The Cat, sat!", 2), shingle_hashes("the cat sat", 2))
    assert len(shingle_hashes("one two", 5)) == 1
    assert len(shingle_hashes("?! ...", 5)) == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.5, 0.7, 0.8, 0.9]))
def test_pairs_well_above_the_threshold_go_and_pairs_well_below_stay(seed: int, min_similarity: float) -> None:
    """The standard error of an estimate is 0.04; "well" means four of them."""
    generator = random.Random(seed)
    config = NearDuplicatesConfig(min_similarity=min_similarity)
    for num_changes in (0, 2, 5, 10, 20, 60):
        words = text_of(generator)
        texts = [" ".join(words), " ".join(changed(generator, words, num_changes))]
        similarity = jaccard(shingles(texts[0], 5), shingles(texts[1], 5))
        if abs(similarity - min_similarity) > 0.16:
            assert dropped_of(texts, config) == ({1} if similarity > min_similarity else set()), similarity


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_components_are_those_of_exact_similarity(seed: int) -> None:
    """Families of copies with few changes, and unrelated texts: one of each family stays, the first by id."""
    generator = random.Random(seed)
    families: list[list[str]] = []
    for _ in range(8):
        words = text_of(generator)
        copies = [" ".join(changed(generator, words, 2)) for _ in range(generator.randint(0, 3))]
        families.append([" ".join(words), *copies])
    texts = [text for family in families for text in family]
    generator.shuffle(texts)
    found = {frozenset(family) for family in families}
    for one, two in combinations(texts, 2):
        same = any(one in family and two in family for family in found)
        assert (jaccard(shingles(one, 5), shingles(two, 5)) > 0.8) == same
    first = {min(texts.index(text) for text in family) for family in families}
    assert dropped_of(texts, NearDuplicatesConfig(min_similarity=0.6)) == set(range(len(texts))) - first


def test_estimates_are_those_of_jaccard() -> None:
    generator = random.Random(5)
    config = NearDuplicatesConfig(num_permutations=1024)
    words = text_of(generator, 1000)
    for num_changes in (0, 20, 60, 200):
        texts = [" ".join(words), " ".join(changed(generator, words, num_changes))]
        one, two = signatures_of(texts, config)
        assert (one == two).mean() == pytest.approx(jaccard(*(shingles(text, 5) for text in texts)), abs=0.06)


@pytest.mark.parametrize("min_similarity", [0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("num_permutations", [64, 128, 1000])
def test_bands_let_pairs_at_the_threshold_meet(min_similarity: float, num_permutations: int) -> None:
    config = NearDuplicatesConfig(min_similarity=min_similarity, num_permutations=num_permutations)
    bands, rows = band_shape(config)
    assert bands * rows <= num_permutations
    assert 1 - (1 - min_similarity**rows) ** bands >= 0.95
    more = rows + 1
    assert 1 - (1 - min_similarity**more) ** (num_permutations // more) < 0.95


def test_a_group_in_which_only_some_are_alike() -> None:
    """The first of a band may resemble none, and two others each other."""
    signatures = np.zeros((4, 100), np.uint32)
    signatures[0] = 1
    signatures[2] = 2
    signatures[3] = 2
    assert alike_components([[0, 1, 2, 3], [1, 3]], signatures, 0.9).tolist() == [0, 1, 2, 2]
    assert alike_components([], signatures[:0], 0.9).tolist() == []


PRINT_SIGNATURES = """
from pipelines.settings.documents import NearDuplicatesConfig
from pipelines.documents.minhash import band_keys, band_shape, signatures_of
config = NearDuplicatesConfig()
signatures = signatures_of(["Ein Text über dies und das, 東京.", "one two three four five six"], config)
print(signatures.tobytes().hex(), band_keys(signatures, band_shape(config)).tobytes().hex())
"""


def test_signatures_are_the_same_in_every_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PRINT_SIGNATURES],
            env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
            capture_output=True,
            check=True,
        ).stdout
        for seed, threads in [("1", "1"), ("2", "2")]
    }
    assert len(outputs) == 1


RECIPE = """
[run]
workspace = "{root}/workspace"
workers = 1
[documents]
num_shards = 3
heldout_share = 0.3
min_characters = 1
near_duplicates = {{min_similarity = 0.7}}
[[documents.sources]]
inputs = ["{root}/corpus"]
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("near")
    generator = random.Random(9)
    (root / "corpus").mkdir()
    for number in range(30):
        words = text_of(generator)
        (root / f"corpus/{number:02d}.txt").write_text(" ".join(words))
        if number < 5:
            (root / f"corpus/{number:02d}-copy.txt").write_text(" ".join(words))
        if number < 10:
            for copy in range(2):
                (root / f"corpus/{number:02d}-near{copy}.txt").write_text(" ".join(changed(generator, words, 2)))
    (root / "corpus/signs.txt").write_text("!!! ???")
    (root / "corpus/other-signs.txt").write_text("... ---")
    (root / "recipe.toml").write_text(RECIPE.format(root=root))
    return root


@pytest.mark.slow
def test_the_job_keeps_one_of_each_family(corpus: Path) -> None:
    recipe = str(corpus / "recipe.toml")
    shard_corpus.run([recipe])
    directory = corpus / "workspace/documents"
    manifest = read_manifest(str(directory))
    assert manifest is not None
    counts = manifest.statistics
    assert (counts["documents_read"], counts["documents_kept"]) == (57, 32)
    # A copy of a text that goes is a duplicate; the text itself goes, or one of its near-duplicates for it.
    assert counts["rejected_by_reason"] == {"duplicate": 5, "near-duplicate": 20}
    with gzip.open(directory / "rejected.jsonl.gz", "rt") as stream:
        rejects = [json.loads(line) for line in stream]
    kept = {
        row["doc_id"].hex(): row["source"]
        for path in sorted(directory.glob("*-of-*.arrow"))
        for row in read_table(str(path)).to_pylist()
    }
    families = [source.removeprefix("corpus/")[:2] for source in kept.values() if "signs" not in source]
    assert sorted(families) == [f"{number:02d}" for number in range(30)]
    for row in rejects:
        if row["reason"] == "near-duplicate":
            words = row["detail"].split()
            assert kept[words[-1]] == words[4].rstrip(",")
            assert words[4].removeprefix("corpus/")[:2] == row["source"].removeprefix("corpus/")[:2]
            assert 0.7 < float(words[2]) <= 1


@pytest.mark.slow
def test_parts_buckets_and_workers_do_not_change_a_byte(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = str(corpus / "recipe.toml")
    shard_corpus.run([recipe, "--workspace", str(tmp_path / "one")])
    one = files_below(tmp_path / "one/documents")
    monkeypatch.setattr("pipelines.documents.document.PART_BYTES", 10_000)
    monkeypatch.setattr("pipelines.documents.near_duplicates._PARTS_PER_BUCKET", 2)
    shard_corpus.run([recipe, "--workspace", str(tmp_path / "two"), "--set", "run.workers=2"])
    two = files_below(tmp_path / "two/documents")
    # Rejects are in the order of parts, with one compressed member for each.
    assert {name for name in one if one[name] != two[name]} <= {"rejected.jsonl.gz", "manifest.json"}
    lines = [sorted(gzip.decompress(files["rejected.jsonl.gz"]).splitlines()) for files in (one, two)]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_switched_off_it_adds_no_step(tmp_path: Path) -> None:
    source = SourceConfig(inputs=(str(tmp_path),))

    def steps(near_duplicates: NearDuplicatesConfig | None) -> set[str]:
        config = DocumentsConfig(sources=(source,), near_duplicates=near_duplicates)
        pipeline = beam.Pipeline()
        shard_corpus.build(pipeline, str(tmp_path), config, [], StageKey("documents", 1, config, {}))
        names: set[str] = set()

        class Names(beam.pipeline.PipelineVisitor):
            def visit_transform(self, node: Any) -> None:
                names.add(node.full_label.split("/")[0])

        pipeline.visit(Names())
        return names

    added = steps(NearDuplicatesConfig()) - steps(None)
    assert added == {"EmitBands", "GroupByBucket", "MeetInBands", "GatherGroups", "ChooseDocuments"}
