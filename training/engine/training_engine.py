"""A thin engine for a training step on DeepSpeed, with its generated JSON.

Losses are scaled here, not by DeepSpeed: each micro-batch carries its part of the global batch's loss, so a step gives
the same gradients for any number and size of ranks and micro-batches.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import nn

from training.engine.gradients import MicroBatchSums, forget_gradients, measure_gradients_once
from training.engine.processes import Processes

_CLIPPING_EPS = 1e-6
"""As in torch's and DeepSpeed's clipping."""


@dataclass(frozen=True)
class EngineSettings:
    """Settings passed to DeepSpeed; batch sizes are informational, the data loader decides."""

    zero_stage: int
    precision: str
    max_grad_norm: float
    micro_batch_size: int
    gradient_accumulation_steps: int
    offload_optimizer: bool = False

    @property
    def clips_here(self) -> bool:
        """Whether `TrainingEngine.step` clips: DeepSpeed would measure again gradients that had to be checked."""
        return self.precision == "fp32" and not self.zero_stage

    @property
    def sums_in_fp32(self) -> bool:
        """Whether gradients of 16-bit weights are to be added up over micro-batches."""
        return self.precision != "fp32" and self.gradient_accumulation_steps > 1

    def deepspeed_json(self) -> dict[str, Any]:
        """The generated configuration; there is no hand-written one."""
        # Overlap combined with compilation and bf16 gave NaN before DeepSpeed 0.19.4.
        zero: dict[str, Any] = {"stage": self.zero_stage, "overlap_comm": False}
        if self.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        return {
            "train_micro_batch_size_per_gpu": self.micro_batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            # DeepSpeed's default is 1.0, so "no clipping" must be explicit.
            "gradient_clipping": 0.0 if self.clips_here else self.max_grad_norm,
            "bf16": {"enabled": self.precision == "bf16"},
            # Loss scale 0 means dynamic: halved on overflow, doubled after a thousand good steps.
            "fp16": {"enabled": self.precision == "fp16", "loss_scale": 0, "initial_scale_power": 16},
            "zero_optimization": zero,
            # By default those of the weights. Below ZeRO-2, `MicroBatchSums` adds.
            "data_types": {"grad_accum_dtype": "fp32" if self.sums_in_fp32 and self.zero_stage > 1 else None},
            "zero_allow_untested_optimizer": True,
            # Use our optimizer with offload, too: the update formulas must not depend on where the state is kept.
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": None,
            # It would empty the GPU's queue before each forward pass.
            "timers": {"throughput": {"enabled": False}},
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
        if processes.world_size == 1 and not settings.zero_stage:
            # There is nothing to sum, and DeepSpeed would copy all gradients to its buckets and back.
            self._engine.enable_backward_allreduce = False
        measure_gradients_once(self._engine.optimizer)
        adds_here = settings.sums_in_fp32 and settings.zero_stage < 2
        self._sums = MicroBatchSums(self._engine.module.parameters()) if adds_here else None
        for state in optimizer.state.values():
            # Some of DeepSpeed's wrappers call step() during initialization, which bias correction would count.
            state["step"].zero_()

    def __call__(self, *arguments: Any) -> Any:
        """Forward pass."""
        return self._engine(*arguments)

    def train(self) -> None:
        self._engine.train()

    def eval(self) -> None:
        self._engine.eval()

    def backward(self, loss: torch.Tensor, is_last: bool) -> None:
        """Back-propagate a micro-batch's part of the global loss; `is_last` marks the step's last micro-batch.

        DeepSpeed averages gradients over ranks, while the parts must be summed: hence the factor. It is NaN for a
        loss that is not finite, so that the gradients are NaN in any case, and no rank takes the step.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        factor = self.processes.world_size + 0.0 * loss.detach()
        if self._sums is not None and is_last:
            self._sums.give()
        self._engine.backward(loss * factor, scale_wrt_gas=False)
        if self._sums is not None and not is_last:
            self._sums.take()

    def step(self, learning_rate: float) -> float | torch.Tensor:
        """Clip the gradients, update, and clear them; no update if a gradient is not finite on any rank.

        Returns:
            The global gradient norm before clipping, [] where it is still on the device, NaN if DeepSpeed does not
            report it. `was_updated` then holds whether there was an update.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.settings.clips_here:
            # DeepSpeed calls our optimizer without checking the gradients.
            gradients = [parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            self.was_updated = math.isfinite(norm)
            if not self.was_updated:
                self._engine.zero_grad()
                return norm
            if 0.0 < self.settings.max_grad_norm < norm:
                torch._foreach_mul_(gradients, self.settings.max_grad_norm / (norm + _CLIPPING_EPS))
            self._engine.step()
            return norm
        scale = self._unscaled_norms()
        self._engine.step()
        self.was_updated = self._engine.was_step_applied()
        if not self.was_updated:
            forget_gradients(self._engine.optimizer)
        measured: float | torch.Tensor | None = self._engine.get_global_grad_norm()
        return float("nan") if measured is None else measured / scale

    def _unscaled_norms(self) -> float:
        """The loss scale, where DeepSpeed reports norms with it: 16-bit weights without ZeRO."""
        scaler = getattr(self._engine.optimizer, "loss_scale_config", None)
        return float(scaler.cur_scale) if scaler is not None and scaler.use_grad_scaling else 1.0

    def full_precision_state(self) -> dict[str, torch.Tensor]:
        """All parameters in fp32 on the CPU, gathered under any ZeRO stage; every rank must call it."""
        from deepspeed.utils import safe_get_full_fp32_param

        masters: dict[nn.Parameter, torch.Tensor] = {}
        if not self.settings.zero_stage and self.settings.precision != "fp32":
            wrapper = self._engine.optimizer  # for 16-bit weights; it keeps fp32 copies of the model's
            for own, master in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
                masters.update(zip(own, master, strict=True))
        state: dict[str, torch.Tensor] = {}
        for name, parameter in self._engine.module.named_parameters():
            # A parameter that is not trained is unknown to the optimizer.
            is_sharded = self.settings.zero_stage and parameter.requires_grad
            whole = safe_get_full_fp32_param(parameter) if is_sharded else masters.get(parameter, parameter)
            assert whole is not None, name
            state[name] = whole.detach().float().cpu().clone()
        return state

    def load_full_precision_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore weights for evaluation only: an optimizer's own copy is unchanged."""
        assert self.settings.zero_stage < 3
        with torch.no_grad():
            for name, parameter in self._engine.module.named_parameters():
                parameter.copy_(state[name])

    def save(self, directory: str, tag: str, write: Callable[[Any, str], None]) -> None:
        """Pass all files of a checkpoint to `write(content, path)`, with paths below directory/tag.

        DeepSpeed would write them in place, neither atomically nor flushed (see training/resuming/checkpoints.py).
        """
        # DeepSpeed's extension point for other writers; a subclass would require importing its class.
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
        # Two bugs of DeepSpeed 0.19.8's stage 3 with universal checkpoints: every group gets the settings of the
        # first one (biases would decay), and all flat parameters share one `step`, which is then counted repeatedly.
        for group, own in zip(optimizer.param_groups, settings, strict=True):
            group.update(own)
        for state in optimizer.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].clone()

    @staticmethod
    def convert_to_universal(source: str, target: str) -> None:
        """Convert DeepSpeed's files to its universal form, for any number of ranks; called by one process."""
        from deepspeed.checkpoint import ds_to_universal

        arguments = argparse.Namespace(
            input_folder=source,
            output_folder=target,
            # More workers would fork this process, whose threads hold locks.
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
