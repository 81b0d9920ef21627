"""Fine-tuning on a CPU: our loop against a plain `transformers` loop, the same batches of the same rows.

Rows are the first of GLUE's own CoLA, MRPC and RTE, the encoder has real weights, dropout is off. The peer pads each
batch to its longest row, the best that a padded loop does. CPU time, one thread, complete steps: forward, backward,
clipping, AdamW. Losses are compared step by step. The value is the geometric mean of the tasks' ratios.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from tests.support import REPOSITORY
from tests.support.measuring import cpu_seconds, report
from tests.support.training.real_weights import fetch_real_encoder
from tests.support.training.side_by_side import SideBySide

from pipelines.contract.workspace import METRICS_NAME
from training.engine.processes import Processes, start_processes, stop_processes
from training.settings.finetuning import FinetuningConfig
from training.settings.glue import TASKS
from training.tracking.mlflow_sender import points_of
from training.tracking.tracker import Tracker

GLUE = REPOSITORY.parent / "shared" / "data" / "glue"
NAMES = ("cola", "mrpc", "rte")
BATCH_SIZE, STEPS, RUNS = 32, 3, 3
TOLERANCE = 1e-4
CONFIG = FinetuningConfig(
    batch_size=BATCH_SIZE, num_train_epochs=1, warmup_proportion=0.0, log_every_steps=1, optimizer="adamw", dropout=0.0
)


def few_rows(name: str, target: Path) -> None:
    """Enough rows of a task's training file for a few steps; two of them form its development file."""
    task = TASKS[name]
    folder = target / task.folder
    folder.mkdir(parents=True)
    lines = (GLUE / task.folder / task.train_file).read_bytes().split(b"\n")
    for file, count in ((task.train_file, BATCH_SIZE * STEPS), (task.dev_files[0], 2)):
        (folder / file).write_bytes(b"\n".join(lines[: count + task.has_header]) + b"\n")


def compare(name: str, encoder: str, glue: Path, processes: Processes) -> tuple[float, float, float]:
    """CPU seconds of our epoch, of the plain loop's, and the largest difference of their losses."""
    both = SideBySide.set_up(name, encoder, str(glue), CONFIG, processes)
    engine = both.fitting.build_engine()
    with tempfile.TemporaryDirectory() as folder:
        with Tracker(folder, is_first=True) as tracker:
            ours = cpu_seconds(lambda: both.fitting.train_epoch(engine, 0, tracker))
        losses = [point.value for point in points_of((Path(folder) / METRICS_NAME).read_bytes(), 0, "")[0]]
    engine.close()
    plain: list[float] = []
    peer = cpu_seconds(lambda: plain.extend(both.train_plain_loop()))
    return ours, peer, max(abs(one - other) for one, other in zip(losses, plain, strict=True))


def main() -> None:
    if not GLUE.is_dir():
        sys.exit(f"{GLUE}: GLUE's files are not here; this benchmark measures on their lengths")
    torch.set_num_threads(1)
    encoder = str(fetch_real_encoder())
    processes = start_processes()
    torch.set_num_threads(1)
    ratios: dict[str, list[float]] = {name: [] for name in NAMES}
    rates, peer_rates, difference = [], [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            few_rows(name, Path(folder))
        for round_number in range(RUNS + 1):
            for name in NAMES:
                ours, peer, apart = compare(name, encoder, Path(folder), processes)
                difference = max(difference, apart)
                print(f"{name}: {STEPS / ours:.3f} steps/s, plain loop {STEPS / peer:.3f}, x{peer / ours:.2f}, "
                      f"losses apart by {apart:.1e}{'' if round_number else ' (warm-up)'}", flush=True)  # fmt: skip
                if round_number:
                    ratios[name].append(peer / ours)
                    rates.append(STEPS / ours)
                    peer_rates.append(STEPS / peer)
    stop_processes()
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    report(
        "finetuning",
        statistics.mean(rates),
        "steps/CPU s",
        peer="plain transformers loop, padded to each batch's longest row",
        peer_value=statistics.mean(peer_rates),
        ratio=math.prod(medians.values()) ** (1 / len(medians)),
        ratio_by_task={name: round(value, 3) for name, value in medians.items()},
        largest_loss_difference=difference,
        identical=difference <= TOLERANCE,
        runs=RUNS,
    )


if __name__ == "__main__":
    main()
