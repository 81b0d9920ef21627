"""Score an encoder cheaply: a linear model on its frozen sentence features for each task, minutes instead of hours.

    clozeworks probe --model models:/NAME@champion --glue-dir DIR --tasks cola sst-2 rte

A sentence is the mean over its sub-tokens, a pair (u, v) is [u, v, |u - v|, u * v]; logistic regression, or ridge
regression for scores, is fitted on the training rows, with a fifth of them held out to choose its regularisation, and
scored on the dev rows (MNLI: the matched ones). For comparison it shows the same for random weights of the same shape,
and the metric of always predicting the most frequent answer.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from pipelines.commands.command_line import CommandParser
from pipelines.commands.process_exit import run_and_leave
from pipelines.contract import storage
from pipelines.contract.errors import InputError, exit_code_of
from training.features.encoder_arguments import add_encoder_arguments, parse_encoder_arguments
from training.stages.encoders import encoder_directory

if TYPE_CHECKING:
    from training.features.extractor import FeatureExtractor

_DEFAULT_SEED = 12_345
_COLUMNS = "{:<11} {:<20} {:>6} {:>6} {:>9} {:>8} {:>8} {:>8}"


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks probe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: clozeworks probe --model workspaces/demo --glue-dir glue --tasks cola sst-2",
    )
    add_encoder_arguments(parser, layers="-1")
    parser.add_argument(
        "--glue-dir", required=True, metavar="DIR", help="folder with GLUE's own (CoLA, SST-2, RTE ...)"
    )
    parser.add_argument("--tasks", required=True, nargs="+", metavar="TASK", help="such as cola sst-2 mrpc sts-b rte")
    parser.add_argument(
        "--max-train-rows", type=int, default=8_000, metavar="ROWS", help="drawn where a task has more (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=_DEFAULT_SEED, help="rows and random weights (%(default)s)")
    parser.add_argument("--output", metavar="FILE", help="also write all figures as JSON")
    parsed = parse_encoder_arguments(parser, arguments)
    paths = _checked_paths(parsed)
    directory = encoder_directory(parsed.model)
    report = _probe_all(parsed, directory, paths)
    print(_table(report), flush=True)
    if parsed.output:
        storage.write_bytes(parsed.output, json.dumps(report, indent=2).encode() + b"\n")
    return 0


def _checked_paths(parsed: argparse.Namespace) -> dict[str, list[str]]:
    """Training and dev files by task."""
    from training.settings.glue import TASKS, task_files

    if parsed.max_train_rows < 10:
        raise InputError(f"--max-train-rows {parsed.max_train_rows}: too few to fit and to hold out; give 10 or more")
    valid = [task.name for task in TASKS.values() if task.train_file and task.dev_files]
    for name in parsed.tasks:
        if name not in valid:
            raise InputError(f"--tasks names {name!r}; valid names: {', '.join(valid)}")
    return {name: task_files(name, parsed.glue_dir) for name in parsed.tasks}


def _probe_all(parsed: argparse.Namespace, directory: str, paths: dict[str, list[str]]) -> dict[str, Any]:
    # torch and scikit-learn take seconds to load: only after the arguments have been checked.
    from training.bert.modeling import chosen_layers, initialize_weights
    from training.engine.devices import device_of_one_process
    from training.features.extractor import FeatureExtractor, chosen_length, load_encoder

    device = device_of_one_process()
    extractors: dict[str, FeatureExtractor] = {}
    for kind in ("random", "encoder"):
        encoder = load_encoder(directory, device)
        if kind == "random":
            initialize_weights(encoder.model, encoder.config.initializer_range, parsed.seed)
        layers = chosen_layers(parsed.layers, encoder.config.num_hidden_layers)
        length = chosen_length(parsed.max_seq_length, encoder.config)
        extractors[kind] = FeatureExtractor(encoder.model, encoder.tokenizer, layers, "mean", length, encoder.device)
    return {
        "model": parsed.model,
        "model_sha256": encoder.digest,
        "layers": [int(layer) for layer in layers],
        "max_seq_length": length,
        "max_train_rows": parsed.max_train_rows,
        "seed": parsed.seed,
        "tasks": {name: _probe_task(name, paths[name], extractors, parsed) for name in parsed.tasks},
    }


def _probe_task(
    name: str, paths: list[str], extractors: dict[str, FeatureExtractor], parsed: argparse.Namespace
) -> dict[str, Any]:
    import numpy as np

    from training.features.probing import probe, sampled, sentence_features
    from training.glue.metrics import majority_baseline
    from training.glue.reading import read_examples
    from training.settings.glue import TASKS

    task = TASKS[name]
    train = sampled(read_examples(task, paths[0]), parsed.max_train_rows, parsed.seed, name, "probe")
    dev = read_examples(task, paths[1])
    if len(train) < 10:
        raise InputError(f"{paths[0]}: {len(train)} rows are too few to fit and to hold out; give 10 or more")
    train_labels, dev_labels = (np.array(text.labels, dtype=np.float64) for text in (train, dev))
    result: dict[str, Any] = {
        "metric": task.metric,
        "train_rows": len(train),
        "dev_rows": len(dev),
        "majority": majority_baseline(task, train_labels, dev_labels),
    }
    for kind, extractor in extractors.items():
        started = time.monotonic()
        features = [sentence_features(text, extractor.line_vectors) for text in (train, dev)]
        encoded = time.monotonic()
        found = probe(task, features[0], train_labels, features[1], dev_labels, parsed.seed)
        result[kind] = {
            **found.metrics,
            "penalty": found.penalty,
            "heldout_score": found.heldout,
            "converged": found.converged,
            "encoding_seconds": encoded - started,
            "fitting_seconds": time.monotonic() - encoded,
        }
        shown = "" if found.converged else "; the solver stopped at its iteration limit"
        print(
            f"probe: {name}: {kind} {task.metric} {found.metrics[task.metric]:.4f}, penalty {found.penalty:g}, "
            f"{encoded - started:.0f} s to encode {len(train) + len(dev)} rows, "
            f"{time.monotonic() - encoded:.0f} s to fit{shown}",
            flush=True,
        )
    return result


def _table(report: dict[str, Any]) -> str:
    lines = [_COLUMNS.format("task", "metric", "train", "dev", "majority", "random", "encoder", "seconds")]
    for name, result in report["tasks"].items():
        metric = result["metric"]
        scores = [result["majority"], result["random"][metric], result["encoder"][metric]]
        seconds = sum(result[kind][part] for kind in ("random", "encoder") for part in _SECONDS)
        shown = [f"{score:.4f}" for score in scores]
        lines.append(
            _COLUMNS.format(name, metric, result["train_rows"], result["dev_rows"], *shown, f"{seconds:.0f}").rstrip()
        )
    return "\n".join(lines)


_SECONDS = ("encoding_seconds", "fitting_seconds")


if __name__ == "__main__":
    run_and_leave(lambda: exit_code_of(main))
