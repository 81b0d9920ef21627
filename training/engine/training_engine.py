"""The one place that knows DeepSpeed: processes, its generated JSON, and a thin engine for a training step.

Losses are scaled here, not by DeepSpeed: each micro-batch carries its part of the global batch's loss, so a step gives
the same gradients for any number of ranks and micro-batches, also when their sizes differ.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import torch
import torch.distributed
from torch import nn

from pipelines.contract.errors import InputError
from training.build_ops import extensions_directory, load_communication_operator
from training.engine.peers import Peers, watch_peers
from training.engine.rendezvous import LOOPBACK, all_ranks_are_here, meeting_store, stay_on_loopback
from training.engine.shared_memory import forget_own_buffer, remove_abandoned_buffers
from training.settings.pretraining import Precision


@dataclass(frozen=True)
class Processes:
    """This process among its peers."""

    rank: int
    world_size: int
    device: torch.device
    peers: Peers | None = None
    """The other ranks of this machine, which are watched; None where there are none."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all ranks, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def count(self, value: bool) -> int:
        """On how many ranks a condition holds."""
        return int(self.sum(torch.tensor(int(value), device=self.device)))

    def reached(self, step: int) -> None:
        """Note the step that this rank has completed, for its peers to name if it dies."""
        if self.peers is not None:
            self.peers.reached(step)

    def explain_deaths_by(self, describe: Callable[[], str]) -> None:
        """`describe` is called when a rank has died: what to do, such as which checkpoint is resumed."""
        if self.peers is not None:
            self.peers.explain_by(describe)

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
    """Join the launcher's process group or, without a launcher, make a group of one; peers are watched from then on.

    Where all ranks are on this machine nothing listens but on the loopback interface.
    """
    global _peers
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if on_gpu else "cpu")
    extensions_directory()
    defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": LOOPBACK, "MASTER_PORT": "0"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if all_ranks_are_here() or os.environ["MASTER_ADDR"] == LOOPBACK:
        stay_on_loopback()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        peers = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))
        torch.set_num_threads(max(1, _available_cores() // peers))

    # DeepSpeed talks on standard output while it loads; that stream carries our own lines only. What it says there,
    # as that an operator was built which was only loaded, is of use if it fails.
    with _told_on_failure():
        with _without_mlflow():
            import deepspeed
            from deepspeed.accelerator import get_accelerator
            from deepspeed.constants import default_pg_timeout
            from deepspeed.utils import logger

        logger.setLevel(logging.WARNING)
        # It warns of every optimizer but its own; ours are tested under each stage.
        logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())
        if not on_gpu:
            load_communication_operator()
        if not torch.distributed.is_initialized():
            if int(os.environ.get("LOCAL_RANK", "0")) == 0:
                remove_abandoned_buffers()
            store = meeting_store(rank, world_size, default_pg_timeout)
            torch.distributed.init_process_group(
                get_accelerator().communication_backend_name(),
                store=store,
                rank=rank,
                world_size=world_size,
                timeout=default_pg_timeout,
                # As DeepSpeed does where it makes the group; with a single rank there is no peer to reach.
                device_id=device if on_gpu and world_size > 1 else None,
            )
            _peers = watch_peers(store, rank, world_size)
            deepspeed.init_distributed(verbose=False)
            torch.distributed.barrier()
            forget_own_buffer()
    return Processes(rank, world_size, device, _peers)


def stop_processes() -> None:
    """Leave the process group; a later `start_processes` of this process makes a new one."""
    global _peers
    if _peers is not None:
        _peers.leave(failed=sys.exc_info()[0] is not None)
        _peers = None
    if torch.distributed.is_initialized():
        from deepspeed import comm

        # DeepSpeed keeps groups of its own in module globals, and a backend that believes itself initialised.
        comm.destroy_process_group()
        comm.comm.cdb = None


_peers: Peers | None = None


@contextlib.contextmanager
def _told_on_failure() -> Iterator[None]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    except BaseException:
        sys.stderr.write(said.getvalue())
        raise


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


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolved_precision(precision: Precision, device: torch.device) -> str:
    """`fp32`, `bf16` or `fp16`.

    Raises:
        InputError: bf16 is asked for on a GPU that lacks it, or fp16 on a CPU.
    """
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if precision == "auto":
        return "bf16" if has_bf16 else "fp32"
    if precision == "bf16" and device.type == "cuda" and not has_bf16:
        raise InputError("precision = 'bf16': this GPU has no bfloat16; use 'fp32' or 'fp16'")
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision = 'fp16' needs a GPU: a CPU has no fast float16; use 'fp32' or 'bf16'")
    return precision


TORCH_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""In which type weights and activations are computed, by resolved precision."""


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
    offload_optimizer: bool = False

    def deepspeed_json(self) -> dict[str, Any]:
        """The generated configuration; there is no hand-written one."""
        # Overlap together with compilation and bf16 gave NaN before DeepSpeed 0.19.4.
        zero: dict[str, Any] = {"stage": self.zero_stage, "overlap_comm": False}
        if self.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        return {
            "train_micro_batch_size_per_gpu": self.micro_batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            # DeepSpeed's own default is 1.0, so "no clipping" has to be said.
            "gradient_clipping": self.max_grad_norm,
            "bf16": {"enabled": self.precision == "bf16"},
            # Loss scale 0 is a dynamic one: halved where a gradient overflows, doubled after a thousand good steps.
            "fp16": {"enabled": self.precision == "fp16", "loss_scale": 0, "initial_scale_power": 16},
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            # Offloaded or not, the optimizer is ours: a run updates by the same formulas wherever it keeps its state.
            "zero_force_ds_cpu_optimizer": False,
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
        self.was_updated = False
        with contextlib.redirect_stdout(sys.stderr):
            self._engine, *_ = deepspeed.initialize(
                model=model.to(processes.device),
                optimizer=optimizer,
                config=settings.deepspeed_json(),
                dist_init_required=False,
            )
        for state in optimizer.state.values():
            # Some of DeepSpeed's wrappers call step() while they set up, and bias correction would count that call.
            state["step"].zero_()

    def __call__(self, *arguments: Any) -> Any:
        """Forward pass."""
        return self._engine(*arguments)

    def train(self) -> None:
        self._engine.train()

    def eval(self) -> None:
        self._engine.eval()

    def backward(self, loss: torch.Tensor, is_last: bool) -> None:
        """Back-propagate a micro-batch's part of the global loss; `is_last` marks the step's last one.

        DeepSpeed averages gradients over ranks, while the parts are to be added up: hence the factor. It is NaN for a
        loss that is not finite: so are the gradients then, whatever backward makes of it, and no rank takes the step.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        factor = self.processes.world_size + 0.0 * loss.detach()
        self._engine.backward(loss * factor, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """Clip, update and clear the gradients; without an update if one of them is not finite on any rank.

        Returns:
            The global gradient norm before clipping, NaN where DeepSpeed does not tell it. Whether there was an update
            is then in `was_updated`.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if not hasattr(self._engine.optimizer, "overflow"):
            # fp32 without ZeRO: DeepSpeed calls our optimizer as it is, without a look at the gradients.
            norm = self._reduced_grad_norm()
            self.was_updated = math.isfinite(norm)
            if self.was_updated:
                self._engine.step()
            else:
                self._engine.zero_grad()
            return norm
        self._engine.step()
        self.was_updated = self._engine.was_step_applied()
        norm = self._engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def _reduced_grad_norm(self) -> float:
        gradients = [parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def full_precision_state(self) -> dict[str, torch.Tensor]:
        """All parameters in fp32 on the CPU, gathered from whatever stage; every rank has to call it."""
        from deepspeed.utils import safe_get_full_fp32_param

        masters: dict[nn.Parameter, torch.Tensor] = {}
        if not self.settings.zero_stage and self.settings.precision != "fp32":
            wrapper = self._engine.optimizer  # of 16-bit weights; it keeps them in fp32 beside the model's own
            for own, master in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
                masters.update(zip(own, master, strict=True))
        state: dict[str, torch.Tensor] = {}
        for name, parameter in self._engine.module.named_parameters():
            whole = (
                safe_get_full_fp32_param(parameter) if self.settings.zero_stage else masters.get(parameter, parameter)
            )
            assert whole is not None, name
            state[name] = whole.detach().float().cpu().clone()
        return state

    def load_full_precision_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put weights back for evaluation only: an optimizer's own copy of them stays as it is."""
        assert self.settings.zero_stage < 3
        with torch.no_grad():
            for name, parameter in self._engine.module.named_parameters():
                parameter.copy_(state[name])

    def save(self, directory: str, tag: str, write: Callable[[Any, str], None]) -> None:
        """Hand all files of a checkpoint to `write(content, path)`, their paths below directory/tag.

        DeepSpeed would write them in place, neither atomic nor flushed (see training/resuming/checkpoints.py).
        """
        # The attribute is DeepSpeed's own door for other writers; its class would have to be imported for a subclass.
        self._engine.checkpoint_engine.save = write
        with contextlib.redirect_stdout(sys.stderr):
            self._engine.save_checkpoint(directory, tag=tag, save_latest=False)

    def load(self, directory: str, tag: str, is_universal: bool = False) -> None:
        """Restore weights and optimizer; the files are pickles, so only our own checkpoints may be loaded."""
        optimizer = self._engine.basic_optimizer
        settings = [{name: group[name] for name in group if name != "params"} for group in optimizer.param_groups]
        self._engine._config.load_universal_checkpoint = is_universal
        with contextlib.redirect_stdout(sys.stderr):
            path, _ = self._engine.load_checkpoint(directory, tag=tag)
        assert path is not None, (directory, tag)
        # Two faults of DeepSpeed 0.19.8's stage 3 with universal checkpoints: every group gets the settings of the
        # first one (biases would decay), and all flat parameters share one `step`, which then counts several times.
        for group, own in zip(optimizer.param_groups, settings, strict=True):
            group.update(own)
        for state in optimizer.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].clone()

    @staticmethod
    def convert_to_universal(source: str, target: str) -> None:
        """Turn DeepSpeed's files of one number of ranks into its form for any; one process does it."""
        from deepspeed.checkpoint import ds_to_universal

        arguments = argparse.Namespace(
            input_folder=source,
            output_folder=target,
            # More would fork this process, whose threads hold locks.
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            ds_to_universal.main(arguments)

    def close(self) -> None:
        self._engine.destroy()
