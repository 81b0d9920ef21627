"""Fine-tuning real weights follows a plain `transformers` loop on the same rows, step by step, on every task."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.support.training.side_by_side import SideBySide
from transformers import AutoModel

from pipelines.contract.workspace import METRICS_NAME
from training.engine.processes import Processes
from training.settings.finetuning import FinetuningConfig
from training.settings.glue import TASKS
from training.tracking.tracker import Tracker

TOLERANCE = 1e-4
WITH_ALL_LAYERS = "mrpc"
TRAIN_ROWS, DEV_ROWS, BATCH_SIZE, EPOCHS = 24, 24, 8, 2
CONFIG = FinetuningConfig(
    batch_size=BATCH_SIZE,
    learning_rate=5e-5,
    num_train_epochs=EPOCHS,
    max_seq_length=96,
    seed=7,
    log_every_steps=1,
    optimizer="adamw",
    dropout=0.0,
)


def few_rows(source: Path, target: Path, task_name: str) -> None:
    """The first rows of a task's real files."""
    task = TASKS[task_name]
    (target / task.folder).mkdir(parents=True)
    for file, count in ((task.train_file, TRAIN_ROWS), *((file, DEV_ROWS) for file in task.dev_files)):
        lines = (source / task.folder / file).read_bytes().split(b"\n")
        (target / task.folder / file).write_bytes(b"\n".join(lines[: count + task.has_header]) + b"\n")


@pytest.fixture(scope="module")
def shallow_encoder(real_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two of its six layers: the loops meet the same operations in a third of the time."""
    target = tmp_path_factory.mktemp("shallow") / "encoder"
    shutil.copytree(real_encoder, target, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "config.json"))
    AutoModel.from_pretrained(real_encoder, num_hidden_layers=2).save_pretrained(target)
    return target


@pytest.mark.parametrize("name", ["cola", "sst-2", "mrpc", "sts-b", "qqp", "mnli", "qnli", "rte", "wnli"])
def test_losses_follow_a_plain_loop_step_by_step(
    name: str,
    shared_data: Path,
    real_encoder: Path,
    shallow_encoder: Path,
    single_process: Processes,
    tmp_path: Path,
) -> None:
    few_rows(shared_data / "glue", tmp_path / "glue", name)
    encoder = real_encoder if name == WITH_ALL_LAYERS else shallow_encoder
    both = SideBySide.set_up(name, str(encoder), str(tmp_path / "glue"), CONFIG, single_process)
    with Tracker(str(tmp_path), is_first=True) as tracker:
        fitted = both.fitting.run(tracker, str(tmp_path / "predictions"))
    lines = [json.loads(line) for line in (tmp_path / METRICS_NAME).read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]

    plain_losses = both.train_plain_loop()
    assert len(losses) == EPOCHS * TRAIN_ROWS // BATCH_SIZE
    np.testing.assert_allclose(losses, plain_losses, atol=TOLERANCE, rtol=0)
    # Training has to move the loss for this to mean anything.
    assert max(losses) - min(losses) > 100 * TOLERANCE
    if fitted.epoch == EPOCHS:
        assert fitted.metrics == pytest.approx(both.plain_loop_scores(), abs=TOLERANCE)
