"""Sweeps: the paper's grids, real processes that are killed, side by side against one after the other."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support import REPOSITORY
from tests.support.statistics import statistics_with
from transformers import BertConfig, BertModel

from pipelines.commands.lifeline import LIFELINE_VARIABLE
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, read_manifest, record_of, write_manifest
from pipelines.contract.recipe import Recipe, read_recipe
from pipelines.contract.recipe_text import RecipeError
from pipelines.contract.workspace import METRICS_NAME, MODEL_DIRECTORY, PRETRAINED
from pipelines.statistics.training import TrialStatistics
from training.engine.processes import Processes
from training.settings.finetuning import FinetuningConfig
from training.settings.optimization import FittingConfig
from training.settings.sweep import Cell, SweepConfig
from training.stages.finetuning import finetuning_key
from training.stages.sections import FinetuningSections
from training.trials.running import beginning_of, open_problem, run_trial
from training.trials.side_by_side import run_side_by_side, sole_sweep, worker_environments
from training.trials.sweep_plan import plan
from training.trials.sweep_results import CellScores, TaskSweep, chosen_of, comparison, table_of
from training.trials.trial import Trial
from training.trials.trial_plan import data_directory

SECONDS_TO_GET_THERE = 120
OWN = FittingConfig()


def test_the_grids_of_the_paper_and_of_its_appendix() -> None:
    assert SweepConfig().cells(OWN) == [(32, 5e-5, 3), (32, 4e-5, 3), (32, 3e-5, 3), (32, 2e-5, 3)]
    assert sorted(SweepConfig(grid="appendix").cells(OWN)) == sorted(
        (batch, rate, epochs) for batch in (16, 32) for rate in (5e-5, 3e-5, 2e-5) for epochs in (2, 3, 4)
    )
    own = FittingConfig(batch_size=8, learning_rate=1e-4, num_train_epochs=7)
    assert SweepConfig(grid="none").cells(own) == [(8, 1e-4, 7)]
    assert SweepConfig(learning_rates=(1e-5,), num_train_epochs=(1, 2)).cells(own) == [(32, 1e-5, 1), (32, 1e-5, 2)]
    assert Cell(32, 5e-5, 3).name == "batch32-lr5e-05-epochs3"
    assert (SweepConfig(seeds=2, small_task_restarts=3).num_seeds(True), SweepConfig(seeds=2).num_seeds(True)) == (5, 2)
    assert SweepConfig(seeds=2, small_task_restarts=3).num_seeds(False) == 2


def test_a_value_that_is_given_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[finetuning.sweep]\nlearning_rates = [1e-4, 1e-4]\n")
    with pytest.raises(RecipeError, match=r"finetuning\.sweep\.learning_rates = \[0\.0001, 0\.0001\]: names a value"):
        read_recipe(str(path)).section("finetuning", FinetuningConfig)


def write_rte(folder: Path, train_rows: int) -> None:
    folder.mkdir(parents=True)
    row = "0\tone two\tthree\tentailment\n"
    for name, count in (("train.tsv", train_rows), ("dev.tsv", 2)):
        (folder / name).write_text("index\tsentence1\tsentence2\tlabel\n" + row * count)


def rte_recipe(tmp_path: Path, train_rows: int, more: str = "") -> Recipe:
    write_rte(tmp_path / "glue" / "RTE", train_rows)
    path = tmp_path / "recipe.toml"
    path.write_text(f"""
run = {{ workspace = "{tmp_path / "workspace"}" }}
[finetuning]
tasks = ["rte"]
glue_dir = "{tmp_path / "glue"}"
{more}
[finetuning.sweep]
seeds = 2
small_task_restarts = 1
""")
    return read_recipe(str(path))


@pytest.mark.parametrize(("train_rows", "seeds"), [(9_999, 3), (10_000, 2)])
def test_names_and_keys_of_trials_and_more_seeds_for_small_tasks(tmp_path: Path, train_rows: int, seeds: int) -> None:
    recipe = rte_recipe(tmp_path, train_rows)
    sections = FinetuningSections.of(recipe)
    trials = plan(sections, "rte")
    rates = ("5e-05", "4e-05", "3e-05", "2e-05")
    assert [trial.label for trial in trials] == [
        f"rte/batch32-lr{rate}-epochs3-seed{12_345 + number}" for number in range(seeds) for rate in rates
    ]
    assert trials[0].directory == str(tmp_path / "workspace" / "finetuning" / "rte" / "sweep" / trials[0].name)
    for trial in trials:
        # The quick way to a key, without reading the data again, is the long one's.
        key = finetuning_key(dataclasses.replace(sections, finetuning=trial.config), "rte", PRETRAINED)
        assert (trial.key.config, trial.key.inputs) == (key.config, key.inputs)
    assert len({json.dumps(trial.key.config) for trial in trials}) == len(trials)


def test_a_task_with_a_section_of_its_own_is_swept_in_that_section() -> None:
    config = FinetuningConfig()
    changed = config.with_fitting("squad", {**Cell(48, 3e-5, 2)._asdict(), "seed": 9})
    assert changed.model_copy(update={"squad": config.squad}) == config
    assert (changed.squad.batch_size, changed.squad.learning_rate) == (48, 3e-5)
    assert (changed.squad.num_train_epochs, changed.squad.seed, changed.squad.max_seq_length) == (2, 9, 384)


def test_beginning_from_mnli_asks_for_that_model(tmp_path: Path) -> None:
    recipe = rte_recipe(tmp_path, 3, "mnli_first = true")
    recipe.tables["finetuning"]["tasks"] = ["rte", "mnli"]
    sections = FinetuningSections.of(recipe)
    with pytest.raises(InputError, match=r"mnli/pretrained: no manifest\.json.*clozeworks finetune .* --tasks mnli"):
        plan(sections, "rte")


def complete(directory: str, score: float, key: StageKey) -> None:
    storage.write_bytes(storage.join(directory, MODEL_DIRECTORY, "model.safetensors"), b"weights")
    storage.write_bytes(storage.join(directory, "predictions", "RTE.tsv"), b"rows")
    files = [record_of(directory, name, 0) for name in (f"{MODEL_DIRECTORY}/model.safetensors", "predictions/RTE.tsv")]
    write_manifest(
        directory, key.manifest(files, statistics_with(TrialStatistics, metric="accuracy", score=score), "test")
    )


def planned(tmp_path: Path, rates: tuple[float, ...] = (3e-5, 2e-5), seeds: tuple[int, ...] = (1, 2)) -> list[Trial]:
    cells = [Cell(32, rate, 3) for rate in rates]
    return [planned_trial(tmp_path, {**cell._asdict(), "seed": seed}, cell) for seed in seeds for cell in cells]


def planned_trial(tmp_path: Path, settings: dict[str, Any], cell: Cell) -> Trial:
    config = FinetuningConfig().with_fitting("rte", settings)
    directory, key = str(tmp_path / f"{cell.name}-seed{settings['seed']}"), StageKey("finetuning", 1, settings, {})
    return Trial("rte", PRETRAINED, directory, config, key, "encoder", "encoder")


def test_medians_and_deviations() -> None:
    generator = np.random.default_rng(3)
    for count in (1, 2, 5, 6):
        scores = generator.random(count)
        found = CellScores(Cell(32, 5e-5, 3), dict(enumerate(scores.tolist())))
        assert found.median == pytest.approx(np.median(scores))
        assert found.mean == pytest.approx(np.mean(scores))
        assert found.best == scores.max()
        assert found.deviation == (pytest.approx(np.std(scores, ddof=1)) if count > 1 else None)
    # One lucky seed is not what a point of the grid is chosen for.
    steady = CellScores(Cell(32, 3e-5, 3), {1: 0.7, 2: 0.71, 3: 0.72})
    lucky = CellScores(Cell(32, 5e-5, 3), {1: 0.1, 2: 0.2, 3: 0.9})
    assert chosen_of([lucky, steady]) is steady
    assert chosen_of([]) is None


def test_the_best_model_is_kept_and_every_manifest_stays_true(tmp_path: Path) -> None:
    trials = planned(tmp_path)
    sweep = TaskSweep(str(tmp_path), trials, keeps_all_models=False, mnli_first=False)
    assert sweep.to_train(set()) == trials
    scores = (0.5, 0.6, 0.7, 0.7)
    # The last one ends first: of equals, the first of the plan is the best whatever the order.
    for trial, score in reversed(list(zip(trials, scores, strict=True))):
        complete(trial.directory, score, trial.key)
        sweep.enter(trial, None)
    best = trials[2]
    assert [trial.has_model() for trial in trials] == [trial == best for trial in trials]
    for trial in trials:
        assert trial.difference() is None
        assert os.path.exists(storage.join(trial.directory, MODEL_DIRECTORY)) == (trial == best)
        manifest = read_manifest(trial.directory)
        assert manifest is not None
        assert {file.name for file in manifest.files} >= {"predictions/RTE.tsv"}
    found = json.loads((tmp_path / "best.json").read_text())
    assert (found["trial"], found["model"], found["score"]) == (best.name, f"{best.name}/model", 0.7)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [(cell["learning_rate"], cell["median"], cell["scores"]) for cell in summary["cells"]] == [
        (3e-5, pytest.approx(0.6), {"1": 0.5, "2": 0.7}),
        (2e-5, pytest.approx(0.65), {"1": 0.6, "2": 0.7}),
    ]
    assert summary["chosen"]["learning_rate"] == 2e-5
    assert comparison([sweep])["chosen"] == [False, True]
    assert "| rte  | accuracy | 32         | 2e-05 " in table_of([sweep])

    # With fewer seeds another trial is the best, and its weights are gone: it is trained once more, and once only.
    fewer = TaskSweep(str(tmp_path), trials[:2], keeps_all_models=False, mnli_first=False)
    assert fewer.to_train(set()) == [trials[1]]
    assert fewer.to_train({trials[1]}) == []


def test_a_trial_that_ends_without_a_manifest_is_a_problem(tmp_path: Path) -> None:
    trials = planned(tmp_path)
    sweep = TaskSweep(str(tmp_path), trials, keeps_all_models=False, mnli_first=False)
    sweep.enter(trials[0], None)
    sweep.enter(trials[1], "killed")
    assert sweep.problems == {trials[0]: "it is not complete (not built yet)", trials[1]: "killed"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["complete"], summary["best"], set(summary["problems"])) == (0, None, {t.name for t in trials[:2]})


def test_workers_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert worker_environments(9, 0, [], 16) == [{"OMP_NUM_THREADS": "4"}] * 4
    assert worker_environments(9, 0, [], 2) == [{"OMP_NUM_THREADS": "2"}]
    assert worker_environments(2, 3, [], 8) == [{"OMP_NUM_THREADS": "4"}] * 2
    found = worker_environments(9, 3, ["0", "5"], 12)
    assert [(each["CUDA_VISIBLE_DEVICES"], each["OMP_NUM_THREADS"]) for each in found] == [
        ("0", "4"), ("5", "4"), ("0", "4"),
    ]  # fmt: skip
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert worker_environments(9, 0, ["2"], 8) == [{"CUDA_VISIBLE_DEVICES": "2"}]


WORKER = """
import json, os, signal, sys
bad = set(sys.argv[1].split(","))
for line in iter(sys.stdin.readline, ""):
    name = line.split("/")[1].strip()
    rate = name.split("-lr")[1].split("-epochs")[0]
    if rate in bad:
        os.kill(os.getpid(), signal.SIGKILL)
    problem = "lower learning_rate" if rate == "0.5" else None
    os.write(int(sys.argv[-1]), json.dumps(problem).encode() + b"\\n")
"""


def ends_of(tmp_path: Path, rates: tuple[float, ...], bad: str, slots: int) -> dict[float, str | None]:
    """What a stand-in for the worker, which ends by SIGKILL at some learning rates, leaves of a sweep."""
    trials = planned(tmp_path, rates, (1,))
    found: dict[float, str | None] = {}

    def on_end(trial: Trial, problem: str | None) -> None:
        assert trial.cell.learning_rate not in found
        found[trial.cell.learning_rate] = problem

    with sole_sweep(str(tmp_path)) as lock:
        run_side_by_side(trials, [{}] * slots, [sys.executable, "-c", WORKER, bad], lock, on_end)
    return found


@pytest.mark.parametrize("slots", [1, 3])
def test_a_worker_that_dies_loses_its_own_trial_only(tmp_path: Path, slots: int) -> None:
    found = ends_of(tmp_path, (0.1, 0.2, 0.3, 0.5, 0.6), "0.2", slots)
    killed = "its process was killed by SIGKILL"
    assert found == {0.1: None, 0.2: killed, 0.3: None, 0.5: "lower learning_rate", 0.6: None}


def test_no_more_processes_are_started_where_none_lives(tmp_path: Path) -> None:
    found = ends_of(tmp_path, (0.1, 0.2, 0.3, 0.4, 0.6), "0.1,0.2,0.3,0.4,0.6", 1)
    assert [found[rate] for rate in (0.1, 0.2, 0.3)] == ["its process was killed by SIGKILL"] * 3
    assert [found[rate] for rate in (0.4, 0.6)] == ["not started: 3 worker processes died in a row"] * 2


SETTINGS = (
    'finetuning.sweep.grid="none"',
    "finetuning.sweep.learning_rates=[5e-3, 1e-3]",
    "finetuning.sweep.batch_sizes=[8]",
    "finetuning.sweep.seeds=2",
    "finetuning.sweep.small_task_restarts=1",
    "finetuning.sweep.num_train_epochs=[3]",
    "finetuning.log_every_steps=1",
)


@pytest.fixture(scope="module")
def encoder(make_workspace: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny BERT of random weights, written by `transformers`."""
    directory = tmp_path_factory.mktemp("encoder")
    vocabulary = Path(make_workspace("encoder_vocabulary").path) / "vocabulary"
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(vocabulary / name, directory)
    size = len((directory / "vocab.txt").read_text().splitlines())
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        BertModel(BertConfig(vocab_size=size, max_position_embeddings=64, **shape)).save_pretrained(directory)
    return str(directory)


def start(workspace: Any, encoder: str, side_by_side: int, store: Mapping[str, str]) -> subprocess.Popen[str]:
    arguments = ["--encoder", encoder, "--set", f"finetuning.sweep.side_by_side={side_by_side}"]
    arguments += [argument for setting in SETTINGS for argument in ("--set", setting)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", LIFELINE_VARIABLE: str(os.getpid()), **store}
    return subprocess.Popen(
        workspace.command("training.sweep", *arguments),
        env=environment,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def losses_of(directory: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in Path(directory, METRICS_NAME).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "timestamp_ms"} for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(3 * SECONDS_TO_GET_THERE)
def test_killed_and_resumed_side_by_side_equals_one_after_the_other(
    make_workspace: Callable[[str], Any], encoder: str, single_process: Processes, tmp_path: Path
) -> None:
    """Six trials: two workers, the sweep killed after the first trials, the rest on one worker, all against trials that
    run one after the other in this process."""
    workspace = make_workspace("swept")
    recipe = read_recipe(
        workspace.recipe, [*SETTINGS, f"run.workspace={workspace.path!r}", f"finetuning.encoder={encoder!r}"]
    )
    sections = FinetuningSections.of(recipe)
    folder = data_directory(sections, "word-order")
    trials = plan(sections, "word-order")
    assert len(trials) == 6
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "MLFLOW_EXPERIMENT_NAME": "sweeps"}
    client = new_store(store, tmp_path)

    first = start(workspace, encoder, 2, store)
    deadline = time.monotonic() + SECONDS_TO_GET_THERE
    while not (ready := [trial for trial in trials if trial.difference() is None]):
        assert time.monotonic() < deadline
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = start(workspace, encoder, 1, store)
    output, _ = second.communicate(timeout=SECONDS_TO_GET_THERE)
    assert first.stdout is not None
    first.stdout.close()
    assert second.returncode == 0, output
    assert "tracking: " not in output, output

    # Trials completed by the killed sweep were not started again; none of its processes is alive, or it held the lock.
    done = int(output.split(" trials, ")[1].split(" complete")[0])
    assert done >= len(ready)
    assert f"{6 - done} trials to train, 1 in parallel" in output
    assert output.count(": complete: best epoch") == 6 - done
    assert not any(f"{trial.label}: epoch" in output for trial in ready)
    sweep = TaskSweep(str(tmp_path / "again"), trials, keeps_all_models=True, mnli_first=False)
    assert len(sweep.complete) == 6
    best = sweep.best
    assert best is not None
    assert [trial for trial in trials if trial.has_model()] == [best]

    reference = reference_trials(trials, folder, single_process, tmp_path)
    for trial in trials:
        assert losses_of(trial.directory) == losses_of(reference[trial]), trial.label
        manifest, alone = read_manifest(trial.directory), read_manifest(reference[trial])
        assert manifest is not None
        assert alone is not None
        assert {**manifest.statistics, "seconds": 0} == {**alone.statistics, "seconds": 0}
    weights = [Path(folder, MODEL_DIRECTORY, "model.safetensors") for folder in (best.directory, reference[best])]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert len({json.dumps(losses_of(trial.directory)) for trial in trials}) == 6, "each trial is another one"

    see_nested_runs(client, trials, sweep)


def new_store(store: Mapping[str, str], tmp_path: Path) -> Any:
    from mlflow import MlflowClient

    client = MlflowClient(store["MLFLOW_TRACKING_URI"])
    client.create_experiment(store["MLFLOW_EXPERIMENT_NAME"], artifact_location=str(tmp_path / "artifacts"))
    return client


def reference_trials(trials: list[Trial], folder: str | None, processes: Processes, tmp_path: Path) -> dict[Trial, str]:
    """The same trials without a sweep; their directories."""
    problem, beginning, directories = open_problem(trials[0], folder), beginning_of(trials[0]), {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Another number adds up in another order.
    try:
        for each in trials:
            directory = directories[each] = str(tmp_path / "alone" / each.name)
            run_trial(dataclasses.replace(each, directory=directory), beginning, problem, processes)
    finally:
        torch.set_num_threads(threads)
    return directories


def see_nested_runs(client: Any, trials: list[Trial], sweep: TaskSweep) -> None:
    experiment = client.get_experiment_by_name("sweeps")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert (parent.info.run_name, parent.info.status) == ("sweep", "FINISHED")
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in children} <= {"FINISHED", "KILLED"}, "also those that the killed sweep left open"
    finished = {run.info.run_name: run for run in children if run.info.status == "FINISHED"}
    assert len([run for run in children if run.info.status == "FINISHED"]) == len(finished) == 6
    for trial in trials:
        data = finished[trial.label].data
        assert data.params["learning_rate"] == repr(trial.cell.learning_rate)
        assert (data.params["task"], data.params["seed"]) == ("word-order", str(trial.seed))
        assert data.metrics["score"] == sweep.score(trial)
        curve = client.get_metric_history(finished[trial.label].info.run_id, "loss")
        assert sorted((point.step, point.value) for point in curve) == [
            (line["step"], line["loss"]) for line in losses_of(trial.directory) if "loss" in line
        ]
    table = json.loads(Path(client.download_artifacts(parent.info.run_id, "sweep.json")).read_text())
    rows = [list(row) for row in zip(*comparison([sweep]).values(), strict=True)]
    assert table == {"columns": list(comparison([sweep])), "data": rows}
    assert Path(client.download_artifacts(parent.info.run_id, "sweep.md")).read_text() == table_of([sweep])
