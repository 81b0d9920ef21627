"""The command line that all flows share; light, without Prefect."""

from __future__ import annotations

from flows.parameters.requests import (
    BaseRequest,
    DistillRequest,
    FinetuneRequest,
    PreprocessRequest,
    PretrainRequest,
    RunRequest,
)
from pipelines.commands.command_line import CommandParser
from pipelines.commands.recipe_arguments import add_recipe_arguments

END_TO_END = "end_to_end"
REQUESTS: dict[str, type[BaseRequest]] = {
    END_TO_END: RunRequest,
    "preprocess": PreprocessRequest,
    "pretrain": PretrainRequest,
    "finetune": FinetuneRequest,
    "distill": DistillRequest,
}
"""The request of each flow that `clozeworks run` can run, by the name of its module."""


def flow_parser(name: str, description: str | None = None) -> CommandParser:
    """Parser of the arguments with which a flow is run."""
    command = "clozeworks run" if name == END_TO_END else f"clozeworks run --only {name}"
    parser = CommandParser(
        prog=command,
        description=description,
        epilog=f"example: {command} flows/recipes/demo.toml --set pretraining.seed=7",
    )
    add_recipe_arguments(parser)
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="build every stage again; existing trainings, finished or not, are kept under a numbered name",
    )
    if "continue_finished" in REQUESTS[name].model_fields:
        parser.add_argument(
            "--continue",
            dest="continue_finished",
            action="store_true",
            help="start pre-training from the newest checkpoint of the finished run that the recipe can share",
        )
    return parser
