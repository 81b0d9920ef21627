"""A finished run is prolonged and branched by `--continue`: equal weights, and no file of it changes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support import SUPPORT
from tests.support.training.finished_run import write_finished_run
from tests.support.training.synthetic_run import write_documents, write_examples, write_workspace
from tests.support.training.trainer import Trainer

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest
from pipelines.contract.recipe import read_recipe
from pipelines.results.kept import kept_directories
from pipelines.results.marks import building_directory
from pipelines.statistics.training import PretrainingStatistics
from training.engine.processes import Processes
from training.pretraining.run import EXIT_INTERRUPTED
from training.resuming.adoption import in_words
from training.resuming.checkpointed_stage import begin
from training.resuming.progress import Progress
from training.stages.continuing import Place, continuation_of, planned_start, possible_continuation
from training.stages.pretraining import PretrainingInputs, pretraining_inputs
from training.stages.sections import PretrainingSections

pytestmark = pytest.mark.timeout(300)

WSD = 'pretraining.schedule="warmup_stable_decay"'


def steps(*phases: int) -> str:
    lengths = zip((32, 64), phases, strict=False)
    rows = ", ".join(f"{{max_seq_length={length}, steps={each}, global_batch_size=8}}" for length, each in lengths)
    return f"pretraining.phases=[{rows}]"


def digests(directory: str) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(directory).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def trainer_of(make_workspace: Callable[[str], Any]) -> Callable[[str, Processes], Trainer]:
    return lambda name, processes: Trainer(make_workspace(name), processes)


@pytest.mark.slow
def test_a_prolonged_run_equals_the_one_with_all_steps_from_the_start(
    trainer_of: Callable[[str, Processes], Trainer], single_process: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trainer_of("whole", single_process)
    assert whole(WSD, steps(12, 4)) == 0
    train = trainer_of("prolonged", single_process)
    # The decay of 2 steps starts at step 6; without its own checkpoint nothing from before it would be left.
    # ZeRO 1 and 2 read each other's checkpoints.
    sparse = (
        "pretraining.num_decay_steps=2",
        "pretraining.checkpoint_every_steps=1",
        "pretraining.keep_checkpoints=1",
        "pretraining.zero_stage=1",
    )
    assert train(WSD, steps(8), *sparse) == 0
    finished = digests(train.directory)
    assert {name.split("/")[1] for name in finished if name.startswith("checkpoints/step")} == {
        "step-0000000006",
        "step-0000000008",
    }
    capsys.readouterr()
    assert train(WSD, steps(12, 4), continued="", stop_at=3) == EXIT_INTERRUPTED
    assert "is restored" not in capsys.readouterr().out
    assert digests(train.directory) == finished
    assert train(WSD, steps(12, 4)) == 0
    assert "resumed from checkpoint step-0000000009" in capsys.readouterr().out
    assert train.weights() == whole.weights()
    assert digests(f"{train.directory}.1") == finished
    # The flag may stay: the continued result is that of the recipe.
    for continued in ("", None):
        assert train(WSD, steps(12, 4), continued=continued) == 0
        assert "complete and up to date" in capsys.readouterr().out
    manifest = read_manifest(train.directory)
    assert manifest is not None
    (record,) = manifest.statistics_as(PretrainingStatistics).lineage
    checkpoint = read_manifest(f"{train.directory}.1/checkpoints/step-0000000006")
    assert checkpoint is not None
    assert (record.relation, record.source, record.step) == ("checkpoint", "pretraining", 6)
    assert record.digest == checkpoint.digest == manifest.inputs["continued_from"]
    assert "pretraining.num_decay_steps was 2, is null" in record.differences
    lines = Path(train.directory, "metrics.jsonl").read_text().splitlines()
    assert {*range(1, 17)} <= {json.loads(line)["step"] for line in lines}
    # What was kept becomes the result again, and so does the continued one.
    continued_weights = train.weights()
    assert train(WSD, steps(8), *sparse) == 0
    assert digests(train.directory) == finished
    assert train(WSD, steps(12, 4)) == 0
    assert "is restored as the result" in capsys.readouterr().out
    assert train.weights() == continued_weights


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing after it is executed."""


class Writes:
    """Lets a number of writes pass, and ends the run at the next one."""

    def __init__(self, allowed: int) -> None:
        self._left = allowed

    def counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **more: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                raise Killed
            return real(*arguments, **more)

        return write


@pytest.mark.slow
def test_a_branch_survives_kills_before_it_has_its_checkpoint(
    trainer_of: Callable[[str, Processes], Trainer],
    single_process: Processes,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = trainer_of("branched", single_process)
    assert train() == 0
    finished = digests(train.directory)
    branch = ("pretraining.learning_rate=0.002", "pretraining.hidden_dropout_prob=0", steps(6))
    with pytest.raises(InputError, match="hidden_dropout_prob"):
        train(*branch)
    branch = ("pretraining.learning_rate=0.002", "model.hidden_dropout_prob=0.0", steps(6))
    assert possible_continuation(train.inputs(*branch)) is not None
    capsys.readouterr()

    # The undisturbed branch, in a copy of the workspace.
    other = copy_of(train)
    assert other(*branch, continued="") == 0
    said = capsys.readouterr().out
    assert "resumed from checkpoint step-0000000004" in said

    real_link, real_rename = os.link, os.rename
    for number, (name, real) in enumerate([("link", real_link), ("rename", real_rename)]):
        calls = []

        def kill(*arguments: Any, real: Any = real, calls: list[int] = calls) -> None:
            calls.append(1)
            if len(calls) > 1 or "incomplete-step" in str(arguments[0]):
                raise Killed
            real(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(os, name, kill)
            with pytest.raises(Killed):
                # The flag of the first attempt is not needed again.
                train(*branch, continued=None if number else "")
        assert digests(train.directory) == finished
        assert not [path for path in Path(building_directory(train.directory)).rglob("step-*/manifest.json")
                    if "incomplete" not in str(path)]  # fmt: skip
    assert possible_continuation(train.inputs(*branch)) is None
    assert train(*branch) == 0
    assert train.weights() == other.weights()
    assert digests(f"{train.directory}.1") == finished


@pytest.mark.slow
def test_earlier_results_are_bounded_only_when_the_new_one_is_complete(
    trainer_of: Callable[[str, Processes], Trainer], single_process: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    train = trainer_of("bounded", single_process)
    most = "pretraining.keep_finished=1"
    rates = [f"pretraining.learning_rate={rate}" for rate in (0.001, 0.002, 0.003, 0.004)]
    for rate in rates[:2]:
        assert train(rate, most) == 0
    first, second = digests(f"{train.directory}.1"), digests(train.directory)
    assert train(rates[2], most, stop_at=2) == EXIT_INTERRUPTED
    assert digests(f"{train.directory}.1") == first
    capsys.readouterr()
    assert train(rates[2], most) == 0
    assert f"{train.directory}.1 is removed: keep_finished = 1" in capsys.readouterr().out
    assert kept_directories(train.directory) == [f"{train.directory}.2"]
    assert digests(f"{train.directory}.2") == second
    # A file of the user's own keeps a result, and a checkpoint of an unfinished run does not count.
    Path(f"{train.directory}.2", "notes.txt").write_text("mine")
    assert train(rates[3], most) == 0
    assert "has files that no run wrote (notes.txt)" in capsys.readouterr().out
    assert len(kept_directories(train.directory)) == 2
    # Branching from a kept result by its name.
    assert train(rates[3], "pretraining.weight_decay=0.1", steps(6), continued="pretraining.2") == 0
    manifest = read_manifest(train.directory)
    assert manifest is not None
    (record,) = manifest.statistics_as(PretrainingStatistics).lineage
    assert record.source == "pretraining.2"
    assert "pretraining.learning_rate was 0.002, is 0.004" in record.differences
    assert "pretraining.weight_decay was 0.01, is 0.1" in record.differences


@pytest.mark.slow
def test_other_rows_start_from_their_beginning_and_are_scored_before(
    trainer_of: Callable[[str, Processes], Trainer], single_process: Processes
) -> None:
    train = trainer_of("reread", single_process)
    assert train() == 0
    examples = os.path.join(train.workspace.path, "examples")
    shutil.rmtree(examples)
    vocabulary = os.path.join(train.workspace.path, "vocabulary")
    write_examples(examples, vocabulary, 206, write_documents(f"{examples}-text", 150), rows=300)
    continuation = continuation_of(train.inputs(steps(6)), train.directory)
    assert continuation.place == Place(step=4, phase=0, phase_step=4, position=0)
    assert "input examples changed" in continuation.differences
    words = "\n".join(in_words(continuation, train.inputs(steps(6)).pretraining))
    assert "rows or their order differ, so the data starts from its beginning" in words
    assert "the learning rate after step 4 jumps from 0 to 0.000333333" in words
    first = read_manifest(train.directory)
    assert train(steps(6), continued="") == 0
    second = read_manifest(train.directory)
    assert first is not None
    assert second is not None
    before, after = (each.statistics_as(PretrainingStatistics) for each in (first, second))
    assert after.heldout_before != before.heldout_before
    assert after.sequences == 6 * 8


@pytest.mark.parametrize("flag", ["", None])
def test_a_kill_at_any_write_before_training_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str | None
) -> None:
    workspace = write_workspace(str(tmp_path / "run"))

    def inputs(*settings: str) -> PretrainingInputs:
        overrides = [f"run.workspace={json.dumps(workspace.path)}", *settings]
        return pretraining_inputs(PretrainingSections.of(read_recipe(workspace.recipe, overrides)))

    finished, longer = inputs(), "pretraining.phases.1.steps=30"
    write_finished_run(finished, step=18)
    before, building = digests(finished.directory), building_directory(finished.directory)

    def attempt(continued: str | None) -> None:
        chosen, continuation = planned_start(inputs(longer), continued, None)
        assert begin(chosen.key, chosen.directory, None, lambda _: None, continuation)

    writers = [(os, "link"), (os, "rename"), (storage, "write_bytes"), (storage, "make_directory")]
    writers += [(storage, "flush_to_disk"), (storage, "move_directory"), (storage, "remove_directory")]
    for number in range(100):
        writes = Writes(allowed=number)
        with monkeypatch.context() as patched:
            for module, name in writers:
                patched.setattr(module, name, writes.counted(getattr(module, name)))
            with contextlib.suppress(Killed):
                attempt("")
                break
        assert digests(finished.directory) == before
        # Once the build has its mark, the flag is not needed.
        attempt(flag if os.path.exists(f"{building}/scratch/key.json") else "")
        manifest = read_manifest(f"{building}/checkpoints/step-0000000018")
        assert manifest is not None
        assert Progress.from_json(manifest.statistics).position == 8 * 4
        assert digests(finished.directory) == before
        shutil.rmtree(building)
    assert number > 5


def copy_of(train: Trainer) -> Trainer:
    path = f"{train.workspace.path}-copy"
    shutil.copytree(train.workspace.path, path)
    return Trainer(dataclasses.replace(train.workspace, path=path), train.processes)


def test_what_cannot_be_continued_is_refused_by_name_and_nothing_changes(
    trainer_of: Callable[[str, Processes], Trainer], single_process: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    train = trainer_of("refused", single_process)
    with pytest.raises(InputError, match=r"pretraining: no finished run to continue; run without --continue"):
        train(continued="")
    assert train() == 0
    before = digests(train.workspace.path)
    for settings, problem in {
        ("model.hidden_size=64",): r"model\.hidden_size was 32, is 64; .*initial_encoder",
        ('pretraining.optimizer="adamw"',): r'optimizer was "adam", is "adamw"',
        ("pretraining.zero_stage=3",): r"zero_stage was 2, is 3",
        ("pretraining.zero_stage=0",): r"zero_stage was 2, is 0",
        ('pretraining.precision="bf16"',): r'precision was "auto", is "bf16"',
        (steps(2),): r"step 4: the recipe has 2 steps, .*; step 3: the recipe",
    }.items():
        with pytest.raises(InputError, match=problem):
            train(*settings, continued="")
    with pytest.raises(InputError, match=r"--continue pretraining\.7: no kept result of this name .*; there are none"):
        train(steps(6), continued="pretraining.7")
    with pytest.raises(InputError, match="nothing differs that --continue could train"):
        train(continued="", restart="anew")
    assert train(continued="") == 0
    assert digests(train.workspace.path) == before
    # A damaged file of the newest checkpoint is found before anything is written.
    path = next(Path(train.directory, "checkpoints", "step-0000000004").rglob("*.pt"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"step-0000000004: cannot be continued from: .*damaged"):
        train(steps(6), continued="")
    assert not os.path.exists(building_directory(train.directory))
    # An unfinished run from step 0 is neither continued nor lost.
    assert train(steps(6), stop_at=2) == EXIT_INTERRUPTED
    shutil.rmtree(path.parent)
    with pytest.raises(InputError, match=r"an unfinished run of this recipe from step 0, now at step 2"):
        train(steps(6), continued="")
    capsys.readouterr()
    assert train(steps(6), continued="", restart="anew", stop_at=1) == EXIT_INTERRUPTED
    said = capsys.readouterr().out
    assert f"the previous run is kept in {train.directory}.1" in said
    assert "resumed from checkpoint step-0000000003" in said


@pytest.mark.slow
def test_on_two_ranks_a_killed_continuation_equals_the_run_with_all_steps(make_workspace: Callable[[str], Any]) -> None:
    whole, workspace = make_workspace("whole2"), make_workspace("prolonged2")
    all_steps = ["--set", WSD, "--set", steps(12, 8)]
    arguments = [whole.recipe, "--workspace", whole.path, *all_steps, "--"]
    arguments += [workspace.recipe, "--workspace", workspace.path, "--set", WSD, "--set", steps(8)]
    finish(whole.start_ranks([sys.executable, str(SUPPORT / "training" / "pretrain_in_turn.py"), *arguments], 2))
    finished = digests(os.path.join(workspace.path, "pretraining"))

    def start(*more: str) -> list[subprocess.Popen[str]]:
        processes: list[subprocess.Popen[str]] = workspace.start_ranks(
            workspace.command("training.pretrain", *all_steps, *more), 2
        )
        return processes

    processes = start("--continue")
    deadline = time.monotonic() + 120
    while not (workspace.stage().endswith(".building") and "step-0000000010" in str(workspace.checkpoints())):
        assert time.monotonic() < deadline
        assert not any(process.poll() for process in processes), finish(processes)
        time.sleep(0.005)
    for process in processes:
        process.kill()
    said = [process.communicate()[0] for process in processes]
    assert "with --continue" not in said[0] + said[1]
    assert [line for line in said[0].splitlines() if "differs" in line or "continue" in line] == [
        f"pretraining: continues from checkpoint step-0000000007 of the finished run in {workspace.path}/pretraining, "
        "which is not changed",
        'pretraining: differs from it: pretraining.phases was [{"global_batch_size": 8, "global_batch_tokens": null, '
        '"max_seq_length": 32, "steps": 8}], is [{"max_seq_length": 32, "steps": 12, "global_batch_size": 8, '
        '"global_batch_tokens": null}, {"max_seq_length": 64, "steps": 8, "global_batch_size": 8, '
        '"global_batch_tokens": null}]',
        "pretraining: continues with sample 56 of phase 0 (length 32)",
        "pretraining: the learning rate continues at 0.001",
    ]
    assert digests(os.path.join(workspace.path, "pretraining")) == finished
    assert "resumed from checkpoint step-00000000" in finish(start())[0]
    assert workspace.has_weights_of(whole)
    assert digests(os.path.join(workspace.path, "pretraining.1")) == finished
    assert "complete and up to date" in finish(start())[0]


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for all ranks; what each has printed."""
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return outputs
