"""BERT's Adam (AdamWeightDecayOptimizer in optimization.py of the released code) and, built on it, LAMB."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class BertAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay and, by default, no bias correction.

    m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;  p -= lr (m / (sqrt(v) + eps) + decay p)

    With `bias_correction`, m and v are first divided by 1 - beta^t, which is AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(group, parameters)
        return loss

    def _update(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        first, second = self._counted(parameters)
        beta1, beta2 = group["betas"]
        # The kernel goes through memory, and does not look at strides.
        gradients = [each.contiguous() for each in _gradients(parameters)]
        assert all(map(torch.Tensor.is_contiguous, parameters)), "a weight is a view of another tensor"
        # The kernel of torch's fused AdamW, one pass over the memory. It divides the moments by 1 - beta^step, which is
        # 1 for an infinite step.
        step = float(self.state[parameters[0]]["step"]) if group["bias_correction"] else float("inf")
        torch._fused_adamw_(
            parameters,
            gradients,
            first,
            second,
            [],
            [torch.full((), step, device=parameters[0].device)] * len(parameters),
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _counted(self, parameters: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Count a step of each parameter; returns the two moments, which are zeros before the first one."""
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] += 1
        states = [self.state[parameter] for parameter in parameters]
        return [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]


def _gradients(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


class Lamb(BertAdam):
    """LAMB: Adam's update of each matrix, scaled in proportion to the matrix's norm.

    r = m / (sqrt(v) + eps) + decay p;  p -= lr (|p| / |r|) r, with m and v bias-corrected, and factor 1 where a
    norm is 0 (You et al., 2020, algorithm 2, phi(z) = z). LayerNorm and biases are not scaled, as in the authors'
    code (lamb_optimizer.py, exclude_from_layer_adaptation).
    """

    def _update(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        if vectors := [parameter for parameter in parameters if parameter.ndim < 2]:
            super()._update(group, vectors)
        if matrices := [parameter for parameter in parameters if parameter.ndim >= 2]:
            self._update_matrices(group, matrices)

    def _update_matrices(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        first, denominators, step_size = self._moments(group, parameters)
        updates = list(torch._foreach_div(first, denominators))
        torch._foreach_mul_(updates, step_size)
        torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        weight_norms, update_norms = (torch.stack(torch._foreach_norm(each)) for each in (parameters, updates))
        usable = (weight_norms > 0) & (update_norms > 0)
        ratios = torch.where(usable, weight_norms / update_norms, torch.ones_like(weight_norms))
        torch._foreach_mul_(updates, list(ratios.unbind()))
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _moments(
        self, group: dict[str, Any], parameters: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], float]:
        """Update the moments; return m and sqrt(v) + eps of each parameter, and the factor that corrects m's bias."""
        beta1, beta2 = group["betas"]
        gradients = _gradients(parameters)
        first, second = self._counted(parameters)
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1.0 - beta2)
        denominators = list(torch._foreach_sqrt(second))
        step_size = 1.0
        if group["bias_correction"]:
            step = float(self.state[parameters[0]]["step"])
            torch._foreach_div_(denominators, (1.0 - beta2**step) ** 0.5)
            step_size = 1.0 / (1.0 - beta1**step)
        torch._foreach_add_(denominators, group["eps"])
        return first, denominators, step_size
