"""Minimal pairs during pre-training: when they are scored, by which weights, and what is recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.training.trainer import Trainer

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest
from pipelines.contract.recipe_text import RecipeError
from pipelines.statistics.metrics import MINIMAL_PAIRS
from pipelines.statistics.training import PretrainingStatistics
from training import blimp
from training.engine.processes import Processes

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("one_thread")]

NAME = f"heldout_{MINIMAL_PAIRS.name}"


@pytest.fixture
def pairs_file(tmp_path: Path) -> str:
    """Twelve pairs in two groups, in words of the synthetic vocabulary."""
    path, words = tmp_path / "pairs.jsonl", [f"w{number}" for number in range(12)]
    rows = [
        {
            "good": f"{words[row]} {words[-row - 1]} {words[0]}",
            "bad": f"{words[0]} {words[row]}",
            "group": f"g{row % 2}",
        }
        for row in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def settings(pairs_file: str, **more: Any) -> str:
    given = {"data": pairs_file, "pairs_per_group": 5, **more}
    inner = ", ".join(f"{name} = {json.dumps(value)}" for name, value in given.items())
    return f"pretraining.minimal_pairs={{{inner}}}"


def test_pairs_are_scored_before_at_their_steps_and_at_the_end_as_the_command_does(
    make_workspace: Callable[[str], Any],
    pairs_file: str,
    tmp_path: Path,
    single_process: Processes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = Trainer(make_workspace("pairs"), single_process)
    assert train("pretraining.eval_every_steps=1", settings(pairs_file, every_steps=2)) == 0
    printed = capsys.readouterr().out
    assert "minimal pairs (10 pairs, word-l2r): " in printed
    logged = {int(line["step"]): line[NAME] for line in train.workspace.metrics() if NAME in line}
    assert sorted(logged) == [0, 2, 4]

    manifest = read_manifest(train.directory)
    assert manifest is not None
    found = manifest.statistics_as(PretrainingStatistics)
    assert found.minimal_pairs is not None
    assert found.metrics[-1] == MINIMAL_PAIRS
    assert found.heldout[MINIMAL_PAIRS.name] == found.minimal_pairs.overall.accuracy == logged[4]
    assert found.heldout_before[MINIMAL_PAIRS.name] == logged[0]
    assert (found.minimal_pairs.overall.pairs, list(found.minimal_pairs.groups)) == (10, ["g0", "g1"])

    output = str(tmp_path / "found.json")
    assert blimp.main([train.workspace.path, "--data", pairs_file, "--pairs-per-group", "5", "--output", output]) == 0
    assert json.loads(Path(output).read_bytes())["overall"] == found.minimal_pairs.overall.model_dump()
    # Another evaluation is no other model.
    assert train.is_result_of()


@pytest.mark.slow
def test_ranks_and_zero_stages_give_the_same_accuracies(make_workspace: Callable[[str], Any], pairs_file: str) -> None:
    """Each rank scores its part, of weights that ZeRO 3 splits; dropout is off, so the weights are equal, too."""
    found = []
    for ranks, stage in ((1, 0), (2, 1), (2, 3)):
        workspace = make_workspace("ranks")
        done = workspace.run(
            "training.pretrain",
            *("--set", f"pretraining.zero_stage={stage}", "--set", settings(pairs_file)),
            *("--set", "pretraining.phases=[{max_seq_length=32, steps=4, global_batch_size=8}]"),
            *("--set", "model.hidden_dropout_prob=0.0", "--set", "model.attention_probs_dropout_prob=0.0"),
            *("--set", "pretraining.num_warmup_steps=1"),
            ranks=ranks,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        manifest = read_manifest(f"{workspace.path}/pretraining")
        assert manifest is not None
        statistics = manifest.statistics_as(PretrainingStatistics)
        found.append((statistics.heldout_before[MINIMAL_PAIRS.name], statistics.minimal_pairs))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "pairs.jsonl: no such file or directory"),
        ('{"good": "a"}', "has no column sentence_bad or bad"),
        (
            json.dumps({"good": " ".join(["a"] * 90), "bad": "a"}),
            r"pretraining\.minimal_pairs: .*pairs.jsonl:1: a sentence has 92 tokens",
        ),
    ],
)
def test_pairs_that_do_not_fit_are_refused_before_anything_is_written(
    single_process: Processes, make_workspace: Callable[[str], Any], tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "pairs.jsonl"
    if content is not None:
        path.write_text(content + "\n")
    train = Trainer(make_workspace("refused"), single_process)
    shutil.rmtree(train.directory, ignore_errors=True)
    with pytest.raises(InputError, match=message):
        train(settings(str(path)))
    assert not Path(train.directory).exists()
    assert not Path(f"{train.directory}.building").exists()


def test_steps_that_are_no_evaluations_are_refused(make_workspace: Callable[[str], Any]) -> None:
    train = Trainer(make_workspace("steps"), None)  # type: ignore[arg-type]  # nothing is started
    with pytest.raises(RecipeError, match=r"every_steps = 15 is not a multiple of eval_every_steps = 10"):
        train.inputs(settings("pairs.jsonl", every_steps=15))
