"""Pre-train BERT: masked LM and next sentence, under DeepSpeed ZeRO.

    deepspeed --num_accelerators 2 --module training.pretrain recipe.toml
    clozeworks pretrain recipe.toml
    clozeworks pretrain recipe.toml --set pretraining.phases.0.steps=200000 --continue

Reads <workspace>/vocabulary and <workspace>/examples, writes <workspace>/pretraining: encoder/ (a Hugging Face
directory), checkpoints/, metrics.jsonl, deepspeed.json and, last of all, manifest.json. The manifest marks success, as
launchers lose exit codes. Run again, it resumes from the newest checkpoint, or exits at once if it is complete.
With other settings, `--continue` starts from a checkpoint of the finished run.
"""

from __future__ import annotations

from pipelines.commands.command_line import CommandParser
from pipelines.commands.process_exit import run_and_leave
from pipelines.contract.workspace import PRETRAINING
from training.pretraining.command import train
from training.resuming.process_end import exit_code_of_rank

_EXAMPLE = (
    "example: clozeworks pretrain recipe.toml --set pretraining.seed=7; on two ranks: "
    "deepspeed --num_accelerators 2 --module training.pretrain recipe.toml"
)


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks pretrain", description=__doc__.splitlines()[0] if __doc__ else None, epilog=_EXAMPLE
    )
    return train(PRETRAINING, parser, arguments)


if __name__ == "__main__":
    run_and_leave(lambda: exit_code_of_rank(main))
