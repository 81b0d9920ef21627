"""Muon: momentum of a matrix's gradient, made orthogonal, as its update (Jordan et al., 2024)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

from training.optimizers.adam import BertAdam

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a X + b (X X') X + c (X X')^2 X, which Jordan et al. chose for a steep slope at 0."""

ITERATIONS = 5
MOMENTUM = 0.95


class Muon(BertAdam):
    """Muon for the matrices that a group names, Adam for everything else.

    `torch.optim.Muon` takes nothing but matrices, and DeepSpeed takes one optimizer.
    A group's `is_matrix` has one entry per parameter, by place: wrappers for 16-bit weights replace the parameters.

    m = momentum m + g;  p -= lr (0.2 sqrt(max(rows, columns)) orthogonal(g + momentum m) + decay p)

    The factor gives the update the size of an Adam update (Liu et al., 2025, "Muon is Scalable for LLM Training",
    section 2.2), so that one learning rate serves both parts.
    """

    def __init__(self, params: Iterable[Any], lr: float, in_bf16: bool = False, **adam: Any) -> None:
        """`in_bf16`: of the products on a CPU, as its model's are; on a GPU they always are."""
        super().__init__(params, lr, **adam)
        self.defaults["in_bf16"] = in_bf16  # of no group, whose settings are in checkpoints

    def _update(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        named = {id(parameter) for parameter, named in zip(group["params"], group["is_matrix"], strict=True) if named}
        if others := [parameter for parameter in parameters if id(parameter) not in named]:
            super()._update(group, others)
        same_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
        for parameter in parameters:
            if id(parameter) in named:
                same_shape[parameter.shape].append(parameter)
        for matrices in same_shape.values():
            self._update_matrices(group, matrices)

    def _update_matrices(self, group: dict[str, Any], matrices: list[torch.Tensor]) -> None:
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix in matrices:
            state = self.state[matrix]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(matrix)
            state["step"] += 1
        momenta: list[torch.Tensor] = [self.state[matrix]["exp_avg"] for matrix in matrices]
        torch._foreach_mul_(momenta, MOMENTUM)
        torch._foreach_add_(momenta, gradients)
        looked_ahead = torch._foreach_add(gradients, momenta, alpha=MOMENTUM)
        updates = orthogonalized(torch.stack(looked_ahead), self.defaults["in_bf16"])
        scale = 0.2 * max(matrices[0].shape) ** 0.5
        torch._foreach_mul_(matrices, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, list(updates.unbind()), alpha=-group["lr"] * scale)


def orthogonalized(matrices_KRC: torch.Tensor, in_bf16: bool = False) -> torch.Tensor:
    """U V' of each matrix U S V', roughly: singular values come out between 0.6 and 1.3.

    Args:
        matrices_KRC: K matrices of one shape.
        in_bf16: compute the products in bfloat16, as always on a GPU.

    Returns:
        [K, R, C]; a matrix of zeros stays so.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices_KRC.shape[1] > matrices_KRC.shape[2]
    x_KRC = matrices_KRC.mT if is_tall else matrices_KRC
    if in_bf16 or x_KRC.is_cuda:
        x_KRC = x_KRC.bfloat16()
    x_KRC = x_KRC / x_KRC.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram_KRR = x_KRC @ x_KRC.mT
        x_KRC = torch.baddbmm(x_KRC, torch.baddbmm(gram_KRR, gram_KRR, gram_KRR, beta=b, alpha=c), x_KRC, beta=a)
    return (x_KRC.mT if is_tall else x_KRC).to(matrices_KRC.dtype)
