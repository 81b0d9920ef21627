"""Development scores of fine-tuning real weights: ours next to a plain `transformers` loop, over several seeds.

    export PYTHONPATH=.
    python tests/benchmarks/finetuning_scores.py                                            # minutes, on a CPU
    python tests/benchmarks/finetuning_scores.py --rows 0 --dev-rows 0 --max-seq-length 128 --epochs 3 \\
        --seeds 5 --encoder bert-base-uncased/                                              # complete, on a GPU

With dropout, so the two draw different numbers and only their distributions can agree. Reports means and standard
deviations, and the difference of the means in units of its standard error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from tests.support import REPOSITORY
from tests.support.training.real_weights import fetch_real_encoder
from tests.support.training.side_by_side import SideBySide

from training.engine.processes import start_processes, stop_processes
from training.settings.finetuning import FinetuningConfig
from training.settings.glue import TASKS
from training.tracking.tracker import Tracker

GLUE = REPOSITORY.parent / "shared" / "data" / "glue"


def copy_rows(name: str, target: Path, train_rows: int, dev_rows: int) -> None:
    """The first rows of a task's files; 0 copies all of them."""
    task = TASKS[name]
    (target / task.folder).mkdir(parents=True)
    for file, count in ((task.train_file, train_rows), *((file, dev_rows) for file in task.dev_files)):
        lines = (GLUE / task.folder / file).read_bytes().rstrip(b"\n").split(b"\n")
        kept = lines[: count + task.has_header] if count else lines
        (target / task.folder / file).write_bytes(b"\n".join(kept) + b"\n")


def standard_errors_apart(ours: list[float], plain: list[float]) -> float:
    """The difference of two means over its standard error (Welch)."""
    variance = statistics.variance(ours) / len(ours) + statistics.variance(plain) / len(plain)
    apart = statistics.mean(ours) - statistics.mean(plain)
    return apart / variance**0.5 if variance else float("inf") if apart else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["rte", "mrpc", "cola", "sts-b"])
    parser.add_argument("--rows", type=int, default=480, help="training rows, 0 for all")
    parser.add_argument("--dev-rows", type=int, default=240, help="development rows, 0 for all")
    parser.add_argument("--max-seq-length", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--encoder", help="Hugging Face directory; without it MiniLM of 6 layers")
    parsed = parser.parse_args()
    encoder = parsed.encoder or str(fetch_real_encoder())
    processes = start_processes()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in parsed.tasks:
            copy_rows(name, Path(folder), parsed.rows, parsed.dev_rows)
            ours, plain, metric = [], [], TASKS[name].metric
            for seed in range(1, parsed.seeds + 1):
                config = FinetuningConfig(
                    learning_rate=parsed.learning_rate,
                    num_train_epochs=parsed.epochs,
                    max_seq_length=parsed.max_seq_length,
                    seed=seed,
                    optimizer="adamw",
                    dropout=0.1,
                )
                both = SideBySide.set_up(name, encoder, folder, config, processes)
                engine = both.fitting.build_engine()
                with Tracker(str(Path(folder) / "ours"), is_first=True) as tracker:
                    for epoch in range(parsed.epochs):
                        both.fitting.train_epoch(engine, epoch, tracker)
                ours.append(both.problem.evaluate(both.fitting.forward(engine))[metric])
                engine.close()
                torch.manual_seed(seed)
                both.train_plain_loop()
                plain.append(both.plain_loop_scores()[metric])
                print(f"{name}, seed {seed}: {metric} {ours[-1]:.4f} ours, {plain[-1]:.4f} plain loop", flush=True)
            results[name] = {
                "metric": metric,
                "ours": [round(score, 4) for score in ours],
                "plain": [round(score, 4) for score in plain],
                "standard_errors_apart": round(standard_errors_apart(ours, plain), 2),
            }
            print(
                f"{name}: {statistics.mean(ours):.4f} +- {statistics.stdev(ours):.4f} ours, "
                f"{statistics.mean(plain):.4f} +- {statistics.stdev(plain):.4f} plain loop, "
                f"{results[name]['standard_errors_apart']} standard errors apart",
                flush=True,
            )
    stop_processes()
    print(json.dumps({"settings": vars(parsed) | {"encoder": Path(encoder).name}, "tasks": results}))


if __name__ == "__main__":
    main()
