"""A finished pre-training as its files show it, without a trained model."""

from __future__ import annotations

from dataclasses import asdict

from pipelines.contract import storage
from pipelines.contract.manifest import record_of, write_manifest
from training.resuming.progress import Progress
from training.stages.pretraining import PretrainingInputs


def write_finished_run(inputs: PretrainingInputs, step: int) -> None:
    """Write a finished run with one checkpoint, in the second phase of the synthetic recipe."""
    checkpoint = storage.join(inputs.directory, f"checkpoints/step-{step:010d}")
    for directory in (inputs.directory, checkpoint):
        storage.write_bytes(storage.join(directory, "weights"), b"w" * 1000)
    progress = Progress(step=step, phase=1, phase_step=step - 14, position=8 * (step - 14))
    files = [record_of(checkpoint, "weights", 0)]
    write_manifest(checkpoint, inputs.key.manifest(files, asdict(progress), "1"))
    files = [record_of(inputs.directory, "weights", 0)]
    write_manifest(inputs.directory, inputs.key.manifest(files, {"steps": 20, "tokens": 5}, "1"))
