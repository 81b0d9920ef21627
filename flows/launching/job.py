"""What is started on the nodes of a run: a module of `training`, its arguments, and its number of ranks."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flows.parameters.ranks import World, distillation_steps, finetuning_batches, pretraining_steps
from flows.parameters.whole_recipe import WholeRecipe
from pipelines.commands.command_line import CommandParser
from pipelines.commands.recipe_arguments import add_recipe_arguments
from training.settings.cluster import ClusterConfig


@dataclass(frozen=True)
class Job:
    """`python -m module arguments` as each rank; `ranks`: of one node, 0 means one per GPU or two without a GPU."""

    module: str
    arguments: tuple[str, ...]
    ranks: int
    cluster: ClusterConfig
    one_node: bool = False
    """Use one node of the cluster only."""

    @classmethod
    def of(cls, whole: WholeRecipe, module: str, ranks: int, one_node: bool = False) -> Job:
        """A job that runs a command of a recipe."""
        return cls(module, tuple(recipe_arguments(whole)), ranks, whole.pretraining.cluster, one_node)


def recipe_arguments(whole: WholeRecipe) -> list[str]:
    """The arguments by which a command reads the same recipe."""
    recipe = whole.recipe
    return [recipe.path, *(argument for override in recipe.overrides for argument in ("--set", override))]


def encoded_world(devices_of_node: Mapping[str, Sequence[int | str]]) -> str:
    """The devices of each node, as DeepSpeed's launcher of one node reads them."""
    text = json.dumps({node: list(devices) for node, devices in devices_of_node.items()})
    return base64.urlsafe_b64encode(text.encode()).decode()


def batch_problem(job: Job, whole: WholeRecipe, world: World) -> str | None:
    """Why the batches of a job's stage are too small for so many ranks; None if they are not."""
    problems = {
        "training.pretrain": pretraining_steps(whole.pretraining, world),
        "training.distill": distillation_steps(whole.distillation, world),
        "training.finetune": finetuning_batches(whole.finetuning, world),
    }
    return next(problems[job.module], None)


def supervisor_command(program: str, job: Job) -> list[str]:
    """The command line of a supervisor of this room, as `supervisor_parser` reads it."""
    options = [f"--ranks={job.ranks}", *(["--one-node"] if job.one_node else [])]
    return [sys.executable, "-m", program, *options, job.module, *job.arguments]


def supervisor_parser(program: str, description: str) -> CommandParser:
    """Parser of a supervisor's command line; what it does not know goes to the module."""
    example = f"example: {program} --ranks 8 training.pretrain flows/recipes/bert-large.toml"
    parser = CommandParser(prog=program, description=description, epilog=example)
    parser.add_argument("--ranks", type=int, default=0, help="ranks of each node; 0 means all slots of a hostfile")
    parser.add_argument("--one-node", action="store_true", help="use one node only")
    parser.add_argument("module", help="such as training.pretrain")
    add_recipe_arguments(parser)
    return parser
