"""The command `clozeworks`, with one verb for each operation. A verb's module is imported when it is chosen."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import os
import sys
from typing import NamedTuple

import pipelines
from pipelines.commands.command_line import CommandParser
from pipelines.commands.process_start import run_module
from pipelines.contract.errors import InputError, exit_code_of

PROGRAM = "clozeworks"

EXTRAS = {
    "": (),
    "pipelines": ("apache_beam", "numba", "tokenizers", "sentencex", "mwxml", "mwparserfromhell", "ftfy", "rensa"),
    "training": ("torch", "deepspeed", "transformers", "tokenizers", "safetensors", "sklearn", "scipy", "mlflow"),
    "flows": ("prefect", "mlflow", "transformers", "torch", "rich", "yaml"),
}
"""Packages that an installation with each extra can import."""


class Verb(NamedTuple):
    """The module that a verb runs, its line in the help, and the extra that it needs."""

    module: str
    line: str
    extra: str


GROUPS = {
    "run": {
        "run": Verb(
            "flows.end_to_end", "run the chain from raw text to registered models (--only FLOW: one flow)", "flows"
        ),
        "study": Verb("flows.study", "compare variants of a recipe on the same data with the same seeds", "flows"),
    },
    "stages, without Prefect": {
        "preprocess": Verb("pipelines.preprocess", "documents, vocabulary and examples in one process", "pipelines"),
        "documents": Verb("pipelines.shard_corpus", "read and clean a corpus, write documents", "pipelines"),
        "vocabulary": Verb("pipelines.train_vocabulary", "train a WordPiece vocabulary on the documents", "pipelines"),
        "examples": Verb("pipelines.build_examples", "write masked next-sentence examples", "pipelines"),
        "pretrain": Verb("training.pretrain", "pre-train an encoder with DeepSpeed", "training"),
        "finetune": Verb("training.finetune", "fine-tune: your own labels, GLUE, SQuAD, tagging", "training"),
        "sweep": Verb("training.sweep", "fine-tune with several settings and seeds, and compare", "training"),
        "distill": Verb("training.distill", "distil an encoder into one of half its depth", "training"),
    },
    "models": {
        "features": Verb("training.extract_features", "write the hidden states of each line of a text", "training"),
        "export": Verb("training.export_checkpoint", "write a checkpoint as a Hugging Face directory", "training"),
        "probe": Verb("training.probe", "score an encoder by linear models on its features", "training"),
        "curve": Verb("flows.curve", "write and draw the curves of a run for others to compare with", "flows"),
        "blimp": Verb("training.blimp", "score an encoder on minimal pairs of sentences (BLiMP)", "training"),
        "glue fetch": Verb("training.glue.fetch", "download GLUE's archives and verify them", ""),
        "glue submit": Verb("training.glue.submission", "zip predictions for GLUE's server, check a zip", ""),
    },
    "inspect": {
        "validate": Verb("pipelines.validate", "check the files that preprocessing wrote", "pipelines"),
        "status": Verb("flows.status", "show which stages are complete and what comes next", "flows"),
        "estimate": Verb("flows.estimate", "estimate what a recipe will cost", "flows"),
        "doctor": Verb("flows.doctor", "check whether this machine has what Clozeworks needs", ""),
        "ui": Verb("flows.ui", "serve the MLflow and Prefect pages of a workspace", "flows"),
    },
    "operate": {
        "deploy": Verb("flows.deploy", "create or update the deployments on a Prefect server", "flows"),
        "promote": Verb("flows.promote", "evaluate a registered model at the promotion gate", "flows"),
        "remove": Verb("flows.remove", "delete an earlier result that was kept", "flows"),
    },
}
VERBS = {name: verb for group in GROUPS.values() for name, verb in group.items()}
FLOWS = ("preprocess", "pretrain", "finetune", "distill")
_ONLY = f" With --only {'|'.join(FLOWS)}: this flow alone."


def main(arguments: list[str] | None = None) -> int:
    """Run a verb and return its exit code: 2 if there is no such verb or its extra is not installed."""
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code_of(lambda: _main(words))


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if words[0] in ("-V", "--version"):
        print(PROGRAM, pipelines.__version__)
        return 0
    length = 2 if " ".join(words[:2]) in VERBS else 1
    name, rest = " ".join(words[:length]), words[length:]
    if name not in VERBS:
        raise InputError(f"{unknown(name)}; see {PROGRAM} --help")
    verb = VERBS[name]
    if name == "run":
        verb, rest = _flow(verb, rest)
    _run(name, verb, rest)
    return 0


def help_text() -> str:
    """All verbs in their groups."""
    lines = [f"usage: {PROGRAM} VERB ...", "", "Raw text in, a GLUE-scored, registered BERT out."]
    for title, verbs in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:12} {verb.line}" for name, verb in verbs.items())]
    lines += ["", f"{PROGRAM} VERB --help shows the arguments of a verb; {PROGRAM} --version shows the version."]
    return "\n".join([*lines, f"example: {PROGRAM} run flows/recipes/demo.toml"])


def _complete() -> None:
    """Answer the shell's completion request through argcomplete: verbs, then files. Ends the process.

    Options are not completed: that would import the verb's module, which takes seconds.
    """
    import argcomplete

    parser = argparse.ArgumentParser(PROGRAM)
    verbs = parser.add_subparsers()
    groups = {}
    for name in VERBS:
        first, _, second = name.partition(" ")
        if second and first not in groups:
            groups[first] = verbs.add_parser(first).add_subparsers()
        leaf = (groups[first] if second else verbs).add_parser(second or first)
        leaf.add_argument("files", nargs="*").completer = argcomplete.FilesCompleter()  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False)


def unknown(name: str) -> str:
    """Error text for an unknown verb, with the closest verb by its name or by that of its module."""
    if name.startswith("-"):
        return f"{name}: options go after the verb"
    if longer := [verb for verb in VERBS if verb.startswith(f"{name} ")]:
        return f"{name}: incomplete verb, use {' or '.join(longer)}"
    meant = {name: name for name in VERBS} | {verb.module.rpartition(".")[2]: name for name, verb in VERBS.items()}
    nearest = difflib.get_close_matches(name, meant, n=1)
    return f"{name}: no such verb" + "".join(f", the closest is {PROGRAM} {meant[near]}" for near in nearest)


def _flow(verb: Verb, words: list[str]) -> tuple[Verb, list[str]]:
    """The flow that `--only` names, and the other arguments."""
    parser = CommandParser(prog=f"{PROGRAM} run", add_help=False, allow_abbrev=False)
    parser.add_argument("--only", choices=FLOWS)
    parsed, rest = parser.parse_known_args(words)
    if parsed.only is None:
        CommandParser.note = _ONLY
        return verb, rest
    return verb._replace(module=f"flows.{parsed.only}"), rest


def _run(name: str, verb: Verb, words: list[str]) -> None:
    """Run a module as `python -m` does: it may end the process, and its child processes see the same `__main__`.

    Raises:
        InputError: a package of the verb's extra is not installed.
    """
    imported = EXTRAS[verb.extra]
    try:
        if not {"-h", "--help"} & set(words):
            for package in imported:
                if importlib.util.find_spec(package) is None:
                    raise ModuleNotFoundError(name=package)
        if name == "run":
            # Imported for this verb only: it reads recipes.
            from flows.servers.early_server import begin_early

            begin_early(verb.module.rpartition(".")[2], words)
        run_module(verb.module, words)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in imported:
            raise
        remedy = f"install it with pip install '{PROGRAM}[{verb.extra}]'"
        raise InputError(f"{PROGRAM} {name}: {package} is not installed; {remedy}") from error


if __name__ == "__main__":
    raise SystemExit(main())
