"""Weighted sources and sets of examples, from text to rows by the real jobs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.support.preprocessing.mixed_corpus import DOCUMENTS, LETTERS, RECIPE, WEIGHTS, write_sources
from tests.support.preprocessing.small_run import run_all

from pipelines import build_examples, shard_corpus
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, read_manifest
from pipelines.jobs.arrow_files import read_table
from pipelines.statistics.preprocessing import ExamplesStatistics
from pipelines.validation.workspace import validate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("mixed")
    path = root / "mixed.toml"
    path.write_text(RECIPE.format(workspace=root / "workspace", sources=write_sources(root)))
    run_all(str(path))
    return str(path)


def examples_of(workspace: Path) -> Manifest:
    manifest = read_manifest(str(workspace / "examples"))
    assert manifest is not None
    return manifest


def tokens_by_source(workspace: Path, directory: str, split: Any = "train") -> dict[str, int]:
    """Tokens of the text in all rows, as they were before masking."""
    vocabulary = (workspace / "vocabulary" / "vocab.txt").read_text().splitlines()
    counts = dict.fromkeys(LETTERS, 0)
    for file in examples_of(workspace).files_of(split, directory):
        for row in read_table(str(workspace / "examples" / file.name)).to_pylist():
            ids = list(row["input_ids"])
            for position, label in zip(row["masked_lm_positions"], row["masked_lm_ids"], strict=True):
                ids[position] = label
            for token in (vocabulary[number].removeprefix("##") for number in ids):
                for name, letters in LETTERS.items():
                    counts[name] += token[0] in letters
    return counts


def test_rows_have_the_shares_that_were_asked_for(recipe: str) -> None:
    workspace = Path(recipe).parent / "workspace"
    statistics = examples_of(workspace).statistics_as(ExamplesStatistics)
    assert statistics.sources.keys() == DOCUMENTS.keys()
    found = tokens_by_source(workspace, "length32")
    longest = 12 * 8 * 5
    for name, facts in statistics.sources.items():
        assert found[name] == facts.tokens_read
        assert facts.asked_share == pytest.approx(WEIGHTS[name])
        assert abs(found[name] - WEIGHTS[name] * sum(found.values())) < longest
    total = sum(facts.train_tokens for facts in statistics.sources.values())
    assert sum(found.values()) == pytest.approx(2 * total, abs=3 * longest)
    assert statistics.sources["law"].reads_per_pass > 3 > 1 > statistics.sources["wiki"].reads_per_pass
    # Held-out documents are read once a pass.
    lengths = statistics.lengths["32"]
    heldout = sum(tokens_by_source(workspace, "length32", "heldout").values())
    assert lengths.tokens_to_place == sum(found.values()) + heldout
    assert heldout + 2 * total == 2 * statistics.text.tokens


def test_sets_have_their_own_sources_masks_and_lengths(recipe: str) -> None:
    workspace = Path(recipe).parent / "workspace"
    manifest = examples_of(workspace)
    directories = {file.name.rpartition("/")[0] for file in manifest.files}
    assert directories == {"length32", "expert/length48", "plain/length32"}
    statistics = manifest.statistics_as(ExamplesStatistics)
    expert, plain = statistics.sets["expert"], statistics.sets["plain"]
    found = tokens_by_source(workspace, "expert/length48")
    assert found["wiki"] == 0
    assert found["law"] / sum(found.values()) == pytest.approx(0.75, abs=0.02)
    assert {name: facts.tokens_read for name, facts in expert.sources.items()} == {
        name: found[name] for name in ("law", "novels")
    }
    assert expert.lengths["48"].masked == 0
    assert tokens_by_source(workspace, "plain/length32")["novels"] == 0
    assert plain.sources["law"].reads_per_pass == 1
    assert plain.lengths["32"].masked_share > 1.1 * statistics.lengths["32"].masked_share
    (first,) = {
        read_table(str(workspace / "examples" / file.name)).schema.metadata[b"clozeworks.masking"]
        for file in manifest.files_of("train", "expert/length48")
    }
    assert first == b"dynamic_whole_word"


def test_validation_recomputes_shares_and_two_workers_write_the_same(recipe: str, tmp_path: Path) -> None:
    workspace = Path(recipe).parent / "workspace"
    validate(str(workspace))
    pairs = ["--set", "examples.next_sentence=true", "--set", "run.workers=2", "--workspace", str(tmp_path)]
    for name in ("documents", "vocabulary"):
        (tmp_path / name).symlink_to(workspace / name)
    build_examples.run([recipe, *pairs])
    validate(str(tmp_path))
    first = examples_of(tmp_path)
    statistics = first.statistics_as(ExamplesStatistics)
    assert statistics.sources == examples_of(workspace).statistics_as(ExamplesStatistics).sources
    assert 0.4 < statistics.lengths["32"].random_next_share < 0.9
    build_examples.run([recipe, *pairs, "--set", "run.workers=1", "--restart"])
    assert examples_of(tmp_path).files == first.files


def test_a_changed_weight_reads_no_text_again(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    shard_corpus.run([recipe, "--set", "documents.sources.0.weight=0.9"])
    assert "documents: complete and unchanged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "examples.sets.1.sources=[{name='wikis'}]",
            r"examples\.sets\.1\.sources\.0\.name = 'wikis': documents\.sources",
        ),
        ("examples.sets.0.name=plain", "two sets have name = 'plain'"),
        ("examples.sets.0.name=length", "names of directories of examples begin so"),
        ("examples.sources=[{name='law', weight=1}, {name='wiki'}]", "'wiki' has no weight, but another has"),
        ("examples.sets.0.name=a/32", r"sets\.0\.name = \"a/32\": must be letters, digits, hyphens and underscores"),
        (
            "examples.sets.0.sources=[{name='law'}, {name='law'}]",
            r"sets\.0 \('\w+'\): sources = \['law', 'law'\]: give each",
        ),
        ("examples.sets.0.masking=dynamics", "did you mean 'dynamic'"),
        ("examples.num_length_bins=40", r"num_length_bins = 40 is more than max_seq_length = 32"),
    ],
)
def test_slips_are_named_before_anything_is_computed(recipe: str, override: str, message: str) -> None:
    before = examples_of(Path(recipe).parent / "workspace")
    with pytest.raises(InputError, match=message):
        build_examples.run([recipe, "--set", override])
    assert examples_of(Path(recipe).parent / "workspace") == before


def test_sources_are_named_and_weighted_together(recipe: str, tmp_path: Path) -> None:
    text = Path(recipe).read_text()
    for changed, message in (
        (re.sub('name = "wiki"\n', "", text), "sources.0 has no name, but another has a name or weight"),
        (text.replace('name = "wiki"\n', 'name = "law"\n'), "two sources have name = 'law'"),
        (text.replace("weight = 0.3\n", ""), r"sources.2 \('law'\) has no weight"),
    ):
        path = tmp_path / "wrong.toml"
        path.write_text(changed)
        with pytest.raises(InputError, match=message):
            shard_corpus.run([str(path)])
