"""The table of launchers, and the command of each kind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flows.dispatch import trials
from flows.dispatch.trials import trial_stage
from flows.launching import single_node
from flows.launching.job import Job, encoded_world
from flows.launching.launchers import LAUNCHERS, launcher_of
from flows.parameters.whole_recipe import WholeRecipe
from flows.running.launch import child_environment
from flows.running.plan import StageOutput, finetuning_stages, pretraining_stage
from pipelines.commands.process_start import command_of
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import read_recipe
from pipelines.contract.recipe_text import RecipeError
from training.settings.cluster import ClusterConfig


def whole_of(*overrides: str) -> WholeRecipe:
    return WholeRecipe.check(read_recipe("flows/recipes/demo.toml", list(overrides)))


def test_without_a_cluster_deepspeed_starts_the_ranks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_node, "gpu_count", lambda: 0)
    job = Job.of(whole_of("pretraining.seed=7"), "training.pretrain", 3)
    command = launcher_of(job).command(job)
    port = next(argument for argument in command if argument.startswith("--master_port="))
    world_info = f"--world_info={encoded_world({'127.0.0.1': [0, 1, 2]})}"
    assert command == [
        *(sys.executable, "-u", "-m", "deepspeed.launcher.launch", "--quiet", world_info),
        *("--master_addr=127.0.0.1", port, "--module", "training.pretrain"),
        *("flows/recipes/demo.toml", "--set", "pretraining.seed=7"),
    ]
    assert launcher_of(job).environment() == single_node.ONE_RANK | {"DS_ACCELERATOR": "cpu"}


@pytest.mark.parametrize(("ranks", "gpus"), [(1, 0), (0, 1)])
def test_a_rank_without_peers_needs_no_launcher(ranks: int, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_node, "gpu_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    job = Job.of(whole_of(), "training.pretrain", ranks)
    assert launcher_of(job).command(job) == command_of("training.pretrain", ["flows/recipes/demo.toml"])


@pytest.mark.parametrize("name", ["pretraining", "finetuning", "sweep"])
def test_what_another_launcher_has_set_is_not_the_ranks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in single_node.ONE_RANK:
        monkeypatch.setenv(variable, "8")
    whole = whole_of("pretraining.ranks=1", "finetuning.ranks=1", "finetuning.sweep.seeds=1")
    # A sweep asks for the files of its tasks first.
    monkeypatch.setattr(trials, "_swept", lambda _whole, task: StageOutput(task, "", dict))
    stages = {
        "pretraining": pretraining_stage(whole),
        "finetuning": finetuning_stages(whole)[0],
        "sweep": trials.sweep_stage(whole),
    }
    stage = stages[name]
    assert stage is not None
    variables = child_environment(stage.environment())
    assert {variable: variables[variable] for variable in single_node.ONE_RANK} == single_node.ONE_RANK


@pytest.mark.parametrize(
    ("named", "ids"),
    [(None, [0, 1]), ("2,3", ["2", "3"]), ("GPU-a, GPU-b,GPU-c", ["GPU-a", "GPU-b"])],
)
def test_ranks_get_the_gpus_that_the_environment_names(
    named: str | None, ids: list[int | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(single_node, "gpu_count", lambda: 3)
    assert list(single_node.device_ids(2)) == ids
    monkeypatch.setattr(single_node, "gpu_count", lambda: 0)
    assert list(single_node.device_ids(2)) == [0, 1]


def test_more_ranks_than_named_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(single_node, "gpu_count", lambda: 1)
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES = 3: 2 ranks need as many GPUs"):
        single_node.device_ids(2)


def test_the_cluster_changes_no_result() -> None:
    here = whole_of().pretraining
    there = whole_of("pretraining.cluster.kind=slurm", "pretraining.ranks=2").pretraining
    assert here.identity() == there.identity()


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("kind=hostfile", "kind = 'hostfile' needs hostfile; name a file"),
        (
            "hostfile=hosts",
            "hostfile = 'hosts' with kind = 'none', which does not read it; remove it, or set kind = 'h",
        ),
        (
            "nodes=4",
            "nodes = 4 with kind = 'none', which does not read it; remove it, or set kind = 'slurm' or 'kubern",
        ),
        ("options=['-F']", "options = ['-F'] with kind = 'none', which does not read it"),
        ("python=/usr/bin/python", "python = '/usr/bin/python' with kind = 'none', which does not read it"),
        ("master_address=a", "master_address = 'a' with kind = 'none', which does not read it"),
        ("kind=ssh", 'pretraining.cluster.kind = "ssh": must be '),
        ("environment=['A=B']", "pretraining.cluster.environment.0"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(override: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        whole_of(f"pretraining.cluster.{override}")
    assert problem in str(caught.value)


def test_a_trial_that_is_a_run_of_its_own_is_trained_by_its_worker() -> None:
    """A hostfile would send every trial to its first node; a scheduler finds a free one."""
    here = tuple(command_of("training.finetune", ()))
    hostfile = ("pretraining.cluster.kind=hostfile", "pretraining.cluster.hostfile=hosts")
    trial, trials = "word-order/pretrained", "--trials"

    def command_of_trial(*overrides: str) -> list[str]:
        return trial_stage(whole_of(*overrides), trial).command()

    for overrides in ((), hostfile):
        command = command_of_trial(*overrides)
        assert (tuple(command[: len(here)]), command[-2:]) == (here, [trials, trial])
    assert command_of_trial("pretraining.cluster.kind=slurm", "pretraining.ranks=1")[2] == "flows.launching.slurm"
    assert command_of_trial(*hostfile, "finetuning.ranks=2")[2] == "flows.launching.hostfile"
    (together,) = finetuning_stages(whole_of(*hostfile))
    assert together.command()[2:5] == ["flows.launching.hostfile", "--ranks=1", "--one-node"]


@pytest.mark.parametrize("kind", ["slurm", "kubernetes"])
@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["pretraining.ranks=0"], "pretraining.ranks = 0 with pretraining.cluster.kind = "),
        (["pretraining.ranks=1", "finetuning.ranks=0"], "finetuning.ranks = 0 with pretraining.cluster.kind = "),
        (
            ["pretraining.ranks=8", "pretraining.cluster.nodes=9"],
            "full sequences is too small for pretraining.ranks = 8 on each of pretraining.cluster.nodes = 9",
        ),
        (
            ["pretraining.ranks=2", "pretraining.cluster.nodes=5", "distillation.global_batch_size=8"],
            "distillation: a step of 8 full sequences is too small for pretraining.ranks = 2 on each of",
        ),
        (
            ["pretraining.ranks=1", "pretraining.cluster.nodes=16", "finetuning.ranks=3"],
            "finetuning.batch_size = 32 is below finetuning.ranks = 3 on each of pretraining.cluster.nodes = 16",
        ),
    ],
)
def test_ranks_over_all_nodes_that_cannot_be_are_refused(kind: str, overrides: list[str], problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        whole_of(f"pretraining.cluster.kind={kind}", *overrides)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_rank_of_finetuning_uses_one_node_of_many() -> None:
    settings = ["pretraining.cluster.nodes=16", "pretraining.ranks=1", "finetuning.batch_size=8"]
    assert whole_of("pretraining.cluster.kind=slurm", *settings).finetuning.ranks == 1


def test_a_recipe_that_only_fine_tunes_needs_no_ranks_of_pretraining(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[run]\nname = "x"\n[pretraining.cluster]\nkind = "slurm"\n[finetuning]\nencoder = "e"\n'
        'tasks = ["cola"]\nglue_dir = "g"\n'
    )
    assert WholeRecipe.check(read_recipe(str(recipe)), needs_corpus=False).pretraining.ranks == 0


def test_a_row_is_a_kind() -> None:
    kinds = ClusterConfig.model_fields["kind"].annotation
    assert set(LAUNCHERS) <= set(getattr(kinds, "__args__", ()))
