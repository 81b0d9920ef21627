"""Weights of a checkpoint of any ZeRO stage and number of ranks, read by one process without ranks."""

from __future__ import annotations

import contextlib
import glob
import os
from typing import Any

import torch
from torch import nn

from training.optimizers.building import decay_groups

_MODEL_STATES_NAME = "mp_rank_00_model_states.pt"


def full_precision_weights(checkpoint: str, model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters in fp32, as `TrainingEngine.full_precision_state` of the run that wrote the checkpoint.

    The partitions are merged by DeepSpeed's own `zero_to_fp32`. Takes about 12 bytes per parameter; moments are not
    read.

    Args:
        checkpoint: the directory of DeepSpeed's files, which are pickles: only our own may be read.
        model: the model that was trained; it may be on the meta device.

    Raises:
        ValueError: the checkpoint does not hold exactly the model's parameters.
    """
    is_partitioned = glob.glob(os.path.join(glob.escape(checkpoint), "*_optim_states.pt"))
    stored = _merged(checkpoint) if is_partitioned else _unpartitioned(checkpoint, model)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    weights = {name: stored[name].float() for name in shapes if name in stored}
    if {name: tensor.shape for name, tensor in weights.items()} != shapes:
        wrong = next(name for name in shapes if name not in weights or weights[name].shape != shapes[name])
        found = tuple(weights[wrong].shape) if wrong in weights else "missing"
        raise ValueError(f"weight {wrong} is {found}, the settings give {tuple(shapes[wrong])}")
    return weights


def stored_shapes(checkpoint: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the trained parameters by name, without reading the weights."""
    path = sorted(glob.glob(os.path.join(glob.escape(checkpoint), f"*{_MODEL_STATES_NAME}")))[0]
    stored = _unpickled(path)
    # Under ZeRO stage 3 the module holds placeholders; the shapes are given by group of the optimizer.
    partitioned = {name: shape for group in stored["param_shapes"] or () for name, shape in group.items()}
    shapes = partitioned or {name: tensor.shape for name, tensor in stored["module"].items()}
    return {name: tuple(shape) for name, shape in shapes.items()}


def _merged(checkpoint: str) -> dict[str, torch.Tensor]:
    directory, tag = os.path.split(os.path.abspath(checkpoint))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        merged: dict[str, torch.Tensor] = get_fp32_state_dict_from_zero_checkpoint(directory, tag=tag)
    return merged


def _unpartitioned(checkpoint: str, model: nn.Module) -> dict[str, torch.Tensor]:
    """ZeRO stage 0: the module itself, or the optimizer's fp32 copies of 16-bit weights."""
    stored = _unpickled(os.path.join(checkpoint, _MODEL_STATES_NAME))
    module: dict[str, torch.Tensor] = stored["module"]
    masters = stored["optimizer"].get("fp32_groups")
    if masters is None:
        return module
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [group["params"] for group in decay_groups(model, 0.0)]
    return {
        names[parameter]: master
        for own, copies in zip(groups, masters, strict=True)
        for parameter, master in zip(own, copies, strict=True)
    }


def _unpickled(path: str) -> dict[str, Any]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        import deepspeed  # noqa: F401 - some of the pickled classes are its own

    content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    return content
