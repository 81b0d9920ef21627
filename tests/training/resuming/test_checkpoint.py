"""Checkpoints: what is kept, how they are written, another number of ranks, and steps that go wrong."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tests.support import SUPPORT

from pipelines.contract.errors import failure_line
from pipelines.contract.manifest import read_manifest
from training.export_checkpoint import main as export
from training.resuming.checkpoint_writer import CheckpointWriter, snapshot
from training.resuming.checkpoints import Retention

pytestmark = pytest.mark.timeout(900)

SCRIPT = str(SUPPORT / "training" / "pretrain_in_turn.py")
TOLERANCE = 1e-5
"""Of losses on another number of ranks; sums of floats in another order differ by about 1e-6 here."""
WITHOUT_DROPOUT = ["model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0"]
# Bias correction makes the losses depend on the optimizer's own count of steps.
SHARED = [*WITHOUT_DROPOUT, "pretraining.adam_bias_correction=true", "pretraining.keep_checkpoints=9"]
STAGES = (0, 2, 3)
POISONED = ["--poison", "96:140"]


def names(*steps: int) -> list[str]:
    return [f"step-{step:010d}" for step in steps]


@given(st.lists(st.integers(1, 60), unique=True), st.integers(1, 5), st.integers(0, 9))
def test_the_newest_and_every_nth_checkpoint_stay(steps: list[int], newest: int, every: int) -> None:
    steps.sort()
    gone = set(Retention(newest, every).superfluous(names(*steps)))
    assert gone == set(names(*(step for step in steps[:-newest] if not every or step % every)))


@given(st.lists(st.integers(1, 60), unique=True), st.integers(1, 5), st.integers(0, 60))
def test_the_last_checkpoint_before_the_decay_stays(steps: list[int], newest: int, branch: int) -> None:
    steps.sort()
    gone = set(Retention(newest, branch_step=branch).superfluous(names(*steps)))
    before = [step for step in steps if step <= branch]
    assert gone == set(names(*(step for step in steps[:-newest] if step not in before[-1:])))


def test_a_snapshot_does_not_see_later_changes() -> None:
    shared = torch.arange(4.0)
    state = {"a": shared, "b": [shared, {"c": (shared[1:], 3)}], "d": OrderedDict(e="text"), "f": torch.empty(0)}
    copied = snapshot(state, {})
    shared.fill_(7.0)
    assert copied["a"].tolist() == [0, 1, 2, 3]
    assert copied["b"][0] is copied["a"]
    assert copied["b"][1]["c"][0].tolist() == [1, 2, 3]
    assert copied["b"][1]["c"][1] == 3
    assert isinstance(copied["d"], OrderedDict)


@pytest.mark.parametrize("in_background", [False, True])
def test_what_is_written_is_what_was_taken(tmp_path: Any, in_background: bool) -> None:
    finished: list[list[str]] = []
    writers = [CheckpointWriter(rank, 2, in_background) for rank in (1, 0)]
    tensor = torch.zeros(3)
    for writer in writers:
        writer.take({"x": tensor}, str(tmp_path / f"{id(writer)}.pt"))
        writer.start(str(tmp_path), lambda: finished.append(sorted(os.listdir(tmp_path))))
        if in_background:
            tensor.add_(1)
    for writer in writers:
        writer.wait()
    assert finished == [sorted(f"{id(writer)}.pt" for writer in writers)], "rank 0 finishes, after all have written"
    read = [torch.load(tmp_path / f"{id(writer)}.pt")["x"].tolist() for writer in writers]
    assert read == [[0.0] * 3, [1.0 if in_background else 0.0] * 3]


def test_a_rank_that_cannot_write_stops_rank_0(tmp_path: Any) -> None:
    writers = [CheckpointWriter(rank, 2, in_background=True) for rank in (1, 0)]
    writers[0].take({}, str(tmp_path / "no such folder" / "file"))
    for writer in writers:
        writer.start(str(tmp_path), lambda: pytest.fail("a checkpoint without one part"))
    with pytest.raises(OSError, match="no such folder"):
        writers[0].wait()
    with pytest.raises(FileNotFoundError, match="rank00001"):
        writers[1].wait()
    writers[1].wait()


def test_what_torch_makes_of_a_full_disk_reaches_every_rank(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(_state: Any, _stream: Any) -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598")  # noqa: B904

    monkeypatch.setattr(torch, "save", save)
    writers = [CheckpointWriter(rank, 2, in_background=True) for rank in (1, 0)]
    writers[0].take({"x": torch.zeros(10), "y": [torch.zeros(2)]}, str(tmp_path / "part"))
    for writer in writers:
        writer.start(str(tmp_path), lambda: pytest.fail("a checkpoint without one part"))
    for writer, path in zip(writers, ("part", "rank00001"), strict=True):
        with pytest.raises(OSError, match=path) as caught:
            writer.wait()
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / path))
        line = failure_line(caught.value) or ""
        assert re.search(rf"{path}: no space left on device, [0-9,]+ bytes are free", line)
        assert ("48 bytes were to be written" in line) == (path == "part")


def in_turn(workspaces: dict[Any, list[str]], ranks: int) -> list[str]:
    """Pre-train workspaces, given with their arguments, in one process group; what each rank has printed."""
    command: list[str] = [sys.executable, SCRIPT]
    for workspace, arguments in workspaces.items():
        command += [workspace.recipe, "--workspace", workspace.path, *arguments, "--"]
    processes = next(iter(workspaces)).start_ranks(command[:-1], ranks)
    try:
        outputs = [process.communicate(timeout=280)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(outputs)
    return outputs


def elastic(stage: int, *more: str) -> list[str]:
    settings = [*SHARED, f"pretraining.zero_stage={stage}", *more]
    return [argument for setting in settings for argument in ("--set", setting)]


def poisoned(stage: int, *more: str) -> list[str]:
    settings = [f"pretraining.zero_stage={stage}", "pretraining.keep_checkpoints=9", "pretraining.max_bad_steps=2"]
    return [argument for setting in (*settings, *more) for argument in ("--set", setting)]


@pytest.fixture(scope="module")
def runs(make_workspace: Callable[[str], Any]) -> dict[str, Any]:
    """All undisturbed and all poisoned runs of this file on two ranks: one start of two processes for all of them."""
    found = {f"stage{stage}": make_workspace(f"stage{stage}") for stage in STAGES}
    arguments = {found[f"stage{stage}"]: elastic(stage) for stage in STAGES}
    for name, settings in {
        "skip": [*poisoned(0), "--poison", "96:100"],
        "back": [*poisoned(3), *POISONED],
        "stop": [*poisoned(2, "pretraining.max_rollbacks=1"), "--poison", "96:1000"],
        "half0": elastic(0, "pretraining.precision=bf16"),
        "half1": elastic(1, "pretraining.precision=bf16"),
    }.items():
        found[name] = make_workspace(name)
        arguments[found[name]] = settings
    found["output"] = in_turn(arguments, ranks=2)
    return found


@pytest.fixture(scope="module")
def resumed(runs: dict[str, Any]) -> dict[str, Any]:
    """Two ranks until step 10, one until step 15, two again; and the poisoned run, killed at two moments."""
    found = {f"one{stage}": runs[f"stage{stage}"].stopped_after(10, "on1") for stage in STAGES}
    alone = {found[f"one{stage}"]: elastic(stage, "pretraining.async_checkpoints=false") for stage in STAGES}
    found["one_output"] = in_turn(alone, ranks=1)
    found |= {f"two{stage}": found[f"one{stage}"].stopped_after(15, "on2") for stage in STAGES}
    together = {found[f"two{stage}"]: elastic(stage) for stage in STAGES}
    for step in (5, 10):
        found[f"back{step}"] = runs["back"].stopped_after(step, f"from{step}")
        together[found[f"back{step}"]] = [*poisoned(3), *POISONED]
    found["two_output"] = in_turn(together, ranks=2)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_goes_on_with_another_number_of_ranks(runs: Any, resumed: Any, stage: int) -> None:
    """Losses stay those of the undisturbed run: weights, optimizer, its settings and the samples of each step."""
    expected = runs[f"stage{stage}"].losses()
    for name in ("one", "two"):
        found = resumed[f"{name}{stage}"].losses()
        assert found.keys() == expected.keys()
        assert max(abs(found[step] - expected[step]) for step in expected) < TOLERANCE, name
    manifest = read_manifest(resumed[f"two{stage}"].checkpoints()[20])
    assert manifest is not None
    assert manifest.statistics["world_size"] == 2
    assert manifest.statistics["position"] == 0


@pytest.mark.slow
def test_the_conversion_is_told_and_leaves_nothing_behind(resumed: Any) -> None:
    # Stage 0 needs none: every rank has everything.
    assert resumed["one_output"][0].count("written by 2 ranks, this run has 1: converting it") == len(STAGES) - 1
    assert resumed["two_output"][0].count("written by 1 ranks, this run has 2: converting it") == len(STAGES) - 1
    for stage in STAGES:
        folder = os.path.join(resumed[f"two{stage}"].stage(), "checkpoints")
        assert not [name for name in os.listdir(folder) if name.startswith("incomplete")]


def statistics(workspace: Any, step: int) -> dict[str, Any]:
    manifest = read_manifest(workspace.checkpoints()[step])
    assert manifest is not None
    return manifest.statistics


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all(runs: Any) -> None:
    for output in runs["output"]:
        assert "weights unchanged" in output
        assert "CHANGED" not in output
    health = statistics(runs["skip"], 20)["health"]
    assert (health["skipped_steps"], health["rollbacks"], health["bad_steps_in_a_row"]) == (1, 0, 0)
    assert sorted(runs["skip"].losses()) == [step for step in range(1, 21) if step != 7]
    events = {"step": 7, "skipped_steps": 1, "loss_spikes": 0, "rollbacks": 0}
    assert any(events.items() <= line.items() for line in runs["skip"].metrics())
    assert "step 7: loss or gradient not finite, no update (1 bad steps in a row" in runs["output"][0]


@pytest.mark.slow
def test_bad_steps_in_a_row_lead_back_to_a_checkpoint_and_behind_their_data(runs: Any) -> None:
    """Steps 7 and 8 are bad: back to step 5, and on behind sample 128, where one more step is bad."""
    assert "returning to checkpoint step-0000000005, continuing from sample 128 of phase 0" in runs["output"][0]
    after = statistics(runs["back"], 10)
    assert after["position"] == 128 + 5 * 16
    assert (after["health"]["skipped_steps"], after["health"]["rollbacks"]) == (3, 1)
    assert sorted(runs["back"].losses()) == [step for step in range(1, 21) if step != 6]


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 10])
def test_a_run_that_went_back_and_was_killed_ends_with_the_same_weights(runs: Any, resumed: Any, step: int) -> None:
    """Killed before or after the return: decisions are repeated, because all they depend on is in the checkpoint."""
    assert resumed[f"back{step}"].losses() == runs["back"].losses()
    assert resumed[f"back{step}"].has_weights_of(runs["back"])


@pytest.mark.slow
def test_after_too_many_returns_the_run_stops_with_one_line(runs: Any) -> None:
    lines = [line for line in runs["output"][0].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "2 steps in a row until step 7 had a loss or gradient that is not finite" in lines[0]
    assert "after 1 returns to a checkpoint; lower pretraining.learning_rate" in lines[0]
    assert read_manifest(os.path.join(runs["stop"].path, "pretraining")) is None
    with open(os.path.join(runs["stop"].stage(), "metrics.jsonl"), encoding="utf-8") as stream:
        assert json.loads(stream.readlines()[-1])["skipped_steps"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stage0", "stage2", "stage3", "half0", "half1"])
def test_an_exported_checkpoint_is_what_its_run_exports(runs: Any, name: str, tmp_path: Any, capsys: Any) -> None:
    """One process reads what two ranks have written: bit-equal weights, in fp32 even if the run computed in 16 bit."""
    encoder, last, middle = f"{runs[name].path}/pretraining/encoder", f"{tmp_path}/last", f"{tmp_path}/middle"
    assert export(["--output", last, runs[name].path]) == 0
    assert export(["--output", middle, "--checkpoint", "step-10", runs[name].path]) == 0
    _, different, missing = filecmp.cmpfiles(encoder, last, os.listdir(encoder), shallow=False)
    assert (different, missing) == (["README.md"], [])
    assert "step-20: 28,304 parameters in" in capsys.readouterr().out
    with open(f"{middle}/README.md", encoding="utf-8") as stream:
        assert "| checkpoint | step 10, " in stream.read()
    model, found = transformers.BertForPreTraining.from_pretrained(middle, output_loading_info=True)
    assert not any(found.values())
    weights = runs[name].weights()
    assert model.bert.pooler.dense.weight.dtype == torch.float32
    assert not torch.equal(model.bert.pooler.dense.weight, weights["bert.pooler.dense.weight"])
