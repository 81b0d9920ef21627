"""Estimates of the bytes that the training stages write.

Light to import, without torch.
"""

from __future__ import annotations

from training.bert.flops import SINGLE_BYTES, checkpoint_bytes
from training.settings.pretraining import PretrainingConfig


def disk_bytes_checkpoints(pretraining: PretrainingConfig, parameters: int, num_steps: float) -> float:
    """Peak size of the checkpoints: a new one is complete before the oldest is removed; that before a decay stays."""
    num_checkpoints = pretraining.keep_checkpoints + 1 + (pretraining.decay_start_step is not None)
    if every := pretraining.keep_every_n_steps:
        num_checkpoints += int(num_steps) // every
    precision = "bf16" if pretraining.precision == "auto" else pretraining.precision
    return checkpoint_bytes(parameters, precision, pretraining.zero_stage) * num_checkpoints


def disk_bytes_model(parameters: int) -> float:
    """One exported model: its weights in fp32; settings and tokenizer are negligible."""
    return float(SINGLE_BYTES * parameters)


def disk_bytes_pretraining(pretraining: PretrainingConfig, parameters: int, num_steps: float) -> float:
    """Checkpoints and the encoder; `num_steps` may be an estimate, 0 if it depends on the machine."""
    return disk_bytes_checkpoints(pretraining, parameters, num_steps) + disk_bytes_model(parameters)


def disk_bytes_finetuning(parameters: int, trials: int) -> float:
    """The model of each trial; a trial is a task fine-tuned from one encoder."""
    return trials * disk_bytes_model(parameters)
