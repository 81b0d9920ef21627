"""Distil an encoder into one of half its depth, by DistilBERT's recipe.

    clozeworks distill recipe.toml
    deepspeed --num_accelerators 2 --module training.distill recipe.toml

Reads <workspace>/examples and pretraining/encoder (or distillation.teacher), writes <workspace>/distillation:
encoder/ (a Hugging Face BertForMaskedLM), checkpoints/, metrics.jsonl and, last of all, manifest.json with sizes,
speeds and held-out scores of both. Run again, it resumes from the newest checkpoint, or exits at once if complete.
"""

from __future__ import annotations

from pipelines.commands.command_line import CommandParser
from pipelines.commands.process_exit import run_and_leave
from pipelines.contract.workspace import DISTILLATION
from training.pretraining.command import train
from training.resuming.process_end import exit_code_of_rank


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks distill",
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="example: clozeworks distill flows/recipes/demo.toml",
    )
    return train(DISTILLATION, parser, arguments)


if __name__ == "__main__":
    run_and_leave(lambda: exit_code_of_rank(main))
