"""The one place that knows DeepSpeed: processes, its generated JSON, and a thin engine for a training step.

Losses are scaled here, not by DeepSpeed: each micro-batch carries its part of the global batch's loss, so a step gives
the same gradients for any number of ranks and micro-batches, also when their sizes differ.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import torch
import torch.distributed
from torch import nn

from pipelines.recipe import InputError
from training.build_ops import extensions_directory, load_communication_operator
from training.config import Precision

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Processes:
    """This process among its peers."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all ranks, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            torch.distributed.barrier()

    def from_first(self, value: Any) -> Any:
        """The value that rank 0 has, on every rank; it travels as a pickle between our own processes."""
        values = [value]
        if self.world_size > 1:
            torch.distributed.broadcast_object_list(values, src=0)
        return values[0]


def start_processes() -> Processes:
    """Join the launcher's process group or, without a launcher, make a group of one on the loopback interface."""
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if on_gpu else "cpu")
    extensions_directory()
    defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": _LOOPBACK}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())
    if os.environ["MASTER_ADDR"] == _LOOPBACK and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    local_rank = int(os.environ["LOCAL_RANK"])
    if on_gpu:
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        peers = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))
        torch.set_num_threads(max(1, _available_cores() // peers))

    # DeepSpeed talks on standard output while it loads; that stream carries our own lines only.
    with contextlib.redirect_stdout(sys.stderr):
        with _without_mlflow():
            import deepspeed
            from deepspeed.utils import logger

        logger.setLevel(logging.WARNING)
        if not on_gpu:
            load_communication_operator()
        if not torch.distributed.is_initialized():
            deepspeed.init_distributed(verbose=False)
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    return Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)


def stop_processes() -> None:
    """Leave the process group."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _without_mlflow() -> Iterator[None]:
    """Keep DeepSpeed's autotuner, which we never use, from importing MLflow: half of DeepSpeed's own import time."""
    missing = "mlflow" not in sys.modules
    if missing:
        sys.modules["mlflow"] = cast(ModuleType, None)  # what makes `import mlflow` raise ImportError
    try:
        yield
    finally:
        if missing:
            del sys.modules["mlflow"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolved_precision(precision: Precision, device: torch.device) -> str:
    """`fp32` or `bf16`.

    Raises:
        InputError: bf16 is asked for on a GPU that lacks it.
    """
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if precision == "auto":
        return "bf16" if has_bf16 else "fp32"
    if precision == "bf16" and device.type == "cuda" and not has_bf16:
        raise InputError("pretraining.precision = 'bf16': this GPU has no bfloat16; use 'fp32'")
    return precision


def seed_dropout(seed: int) -> None:
    """Set the generators of the CPU and of this rank's GPU; done before each micro-batch, so no state needs saving."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


@dataclass(frozen=True)
class EngineSettings:
    """What DeepSpeed is told; batch sizes are for its own records, the data loader decides."""

    zero_stage: int
    precision: str
    max_grad_norm: float
    micro_batch_size: int
    gradient_accumulation_steps: int

    def deepspeed_json(self) -> dict[str, Any]:
        """The generated configuration; there is no hand-written one."""
        return {
            "train_micro_batch_size_per_gpu": self.micro_batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            # DeepSpeed's own default is 1.0, so "no clipping" has to be said.
            "gradient_clipping": self.max_grad_norm,
            "bf16": {"enabled": self.precision == "bf16"},
            # Overlap together with compilation and bf16 gave NaN before DeepSpeed 0.19.4.
            "zero_optimization": {"stage": self.zero_stage, "overlap_comm": False},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": None,
        }


class TrainingEngine:
    """A model and its optimizer under DeepSpeed."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, settings: EngineSettings, processes: Processes
    ) -> None:
        import deepspeed

        self.processes = processes
        self.settings = settings
        with contextlib.redirect_stdout(sys.stderr):
            self._engine, *_ = deepspeed.initialize(
                model=model.to(processes.device),
                optimizer=optimizer,
                config=settings.deepspeed_json(),
                dist_init_required=False,
            )

    def __call__(self, *arguments: Any) -> Any:
        """Forward pass."""
        return self._engine(*arguments)

    def train(self) -> None:
        self._engine.train()

    def eval(self) -> None:
        self._engine.eval()

    def backward(self, loss: torch.Tensor, is_last: bool) -> None:
        """Back-propagate a micro-batch's part of the global loss; `is_last` marks the step's last one.

        DeepSpeed averages gradients over ranks, while the parts are to be added up: hence the factor.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss * self.processes.world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """Clip, update and clear the gradients.

        Returns:
            The global gradient norm before clipping; NaN where DeepSpeed does not compute one.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def full_precision_state(self) -> dict[str, torch.Tensor]:
        """All parameters in fp32 on the CPU, gathered from whatever stage; every rank has to call it."""
        from deepspeed.utils import safe_get_full_fp32_param

        state: dict[str, torch.Tensor] = {}
        for name, parameter in self._engine.module.named_parameters():
            whole = safe_get_full_fp32_param(parameter) if self.settings.zero_stage else parameter
            assert whole is not None, name
            state[name] = whole.detach().float().cpu().clone()
        return state

    def load_full_precision_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put weights back for evaluation only: an optimizer's own copy of them stays as it is."""
        assert self.settings.zero_stage < 3
        with torch.no_grad():
            for name, parameter in self._engine.module.named_parameters():
                parameter.copy_(state[name])

    def save(self, directory: str, tag: str) -> None:
        """Write DeepSpeed's own files below directory/tag; neither atomic nor final (see training/checkpoint.py)."""
        with contextlib.redirect_stdout(sys.stderr):
            self._engine.save_checkpoint(directory, tag=tag, save_latest=False)

    def load(self, directory: str, tag: str) -> None:
        """Restore weights and optimizer; the files are pickles, so only our own checkpoints may be loaded."""
        with contextlib.redirect_stdout(sys.stderr):
            path, _ = self._engine.load_checkpoint(directory, tag=tag)
        assert path is not None, (directory, tag)

    def close(self) -> None:
        self._engine.destroy()
