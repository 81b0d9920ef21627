"""The distillation losses: soft targets and hidden states.

Sanh et al., 2019, section 2, and their code: the soft-target loss is the Kullback-Leibler divergence from teacher to
student at a temperature, times its square so that gradients keep their size; the cosine loss is 1 - cos between the
last layers' outputs. Tensor suffixes as in bert/modeling.py, and K tokens with soft targets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from training.kernels.losses import chunk_rows


class _SoftTargetLoss(torch.autograd.Function):
    """Computes both models' logits and the gradients chunk by chunk in forward, as in training/kernels/losses.py."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor,
        teacher_hidden_KH: torch.Tensor,
        teacher_weight_VH: torch.Tensor,
        teacher_bias_V: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        rows = chunk_rows(hidden_KH.device.type, weight_VH.shape[0])
        loss = torch.zeros((), dtype=torch.float32, device=hidden_KH.device)
        grad_hidden_KH = torch.empty_like(hidden_KH)
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
        grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32)
        for start in range(0, hidden_KH.shape[0], rows):
            hidden = hidden_KH[start : start + rows]
            logits = torch.addmm(bias_V, hidden, weight_VH.t()).float()
            teacher_logits = torch.addmm(
                teacher_bias_V, teacher_hidden_KH[start : start + rows], teacher_weight_VH.t()
            ).float()
            log_probabilities = functional.log_softmax(logits.div_(temperature), dim=1)
            targets = functional.log_softmax(teacher_logits.div_(temperature), dim=1)
            difference = targets - log_probabilities
            targets.exp_()
            loss += (targets * difference).sum() * temperature**2
            # d/dlogits of T^2 KL is T (p - q); it overwrites the student's log-probabilities.
            gradient = log_probabilities.exp_().sub_(targets).mul_(temperature)
            grad_bias_V += gradient.sum(0)
            gradient = gradient.to(hidden.dtype)
            torch.mm(gradient, weight_VH, out=grad_hidden_KH[start : start + rows])
            if hidden.dtype == torch.float32:
                grad_weight_VH.addmm_(gradient.t(), hidden)
            else:
                grad_weight_VH += torch.mm(gradient.t(), hidden)
        ctx.save_for_backward(grad_hidden_KH, grad_weight_VH.to(weight_VH.dtype), grad_bias_V.to(bias_V.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale = grad_outputs[0]
        return (*(gradient * scale.to(gradient.dtype) for gradient in ctx.saved_tensors), None, None, None, None)


def soft_target_loss(
    hidden_KH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor,
    teacher_hidden_KH: torch.Tensor,
    teacher_weight_VH: torch.Tensor,
    teacher_bias_V: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """T^2 KL(teacher || student) at temperature T, summed over tokens, without materializing all logits.

    Args:
        hidden_KH, weight_VH, bias_V: the student's, whose logits are hidden @ weight' + bias; differentiable.
        teacher_hidden_KH, teacher_weight_VH, teacher_bias_V: the teacher's; its H may differ.
        temperature: T, by which both models' logits are divided.

    Returns:
        [] float32.
    """
    result: torch.Tensor = _SoftTargetLoss.apply(
        hidden_KH, weight_VH, bias_V, teacher_hidden_KH, teacher_weight_VH, teacher_bias_V, temperature
    )
    return result


def cosine_loss(hidden_TH: torch.Tensor, teacher_hidden_TH: torch.Tensor) -> torch.Tensor:
    """1 - cos of the angle between both models' outputs, summed over tokens; [] float32."""
    return (1.0 - functional.cosine_similarity(hidden_TH.float(), teacher_hidden_TH.float(), dim=1)).sum()
