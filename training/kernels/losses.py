"""The pre-training losses; masked LM is computed without materializing all logits."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch.nn import functional

_Gradients: TypeAlias = tuple[torch.Tensor, torch.Tensor]

MLM_DENOMINATOR_EPS = 1e-5
"""Added to the number of masked tokens, as in run_pretraining.py, `get_masked_lm_output`."""

_ALIGNED_ELEMENTS = 64
"""Row lengths of a GPU's logits are multiples of this: a vocabulary of 30,522 keeps cuBLAS from its fast kernels."""

_HALF_SCALE = 1024.0
"""Factor of fp16 gradients until backward: probabilities below 6e-8 would be 0."""

_CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits per chunk: enough rows for fast products, 16 MiB on a CPU."""

_BLOCK_TIES = 1 << 16
"""Tied logits that are computed again at a time."""

_BLOCK_COLUMNS = 4_096
"""Tokens of the vocabulary whose logits are made at once where only a few probabilities are read."""


def chunk_rows(device_type: str, vocab_size: int) -> int:
    """Rows of a chunk of logits."""
    return max(16, _CHUNK_ELEMENTS.get(device_type, 1 << 24) // vocab_size)


class _LinearCrossEntropy(torch.autograd.Function):
    """sum(cross_entropy(hidden @ weight' + bias, labels)), with gradients computed chunk by chunk in forward.

    The loss is a sum, so its gradient is the sum over chunks, and backward only scales it. Each chunk of logits is
    overwritten by its own gradient: three passes over memory instead of eight or more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor,
        labels_M: torch.Tensor,
        with_gradients: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = chunk_rows(hidden_MH.device.type, weight_VH.shape[0])
        half_scale = _HALF_SCALE if hidden_MH.dtype == torch.float16 else 1.0
        loss = torch.zeros((), dtype=torch.float32, device=hidden_MH.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden_MH.device)
        grad_hidden_MH = torch.empty_like(hidden_MH) if with_gradients else None
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if with_gradients else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if with_gradients else None
        for start in range(0, hidden_MH.shape[0], rows):
            hidden = hidden_MH[start : start + rows]
            labels = labels_M[start : start + rows]
            chunk = _chunk_on_gpu if hidden.device.type == "cuda" else _chunk
            chunk_loss, chunk_correct, gradients = chunk(hidden, weight_VH, bias_V, labels, with_gradients, half_scale)
            loss += chunk_loss
            correct += chunk_correct
            if gradients is None or grad_hidden_MH is None or grad_weight_VH is None or grad_bias_V is None:
                continue
            gradient, column_sums = gradients
            grad_bias_V += column_sums
            torch.mm(gradient, weight_VH, out=grad_hidden_MH[start : start + rows])
            if hidden.dtype == torch.float32:
                grad_weight_VH.addmm_(gradient.t(), hidden)
            else:
                grad_weight_VH += torch.mm(gradient.t(), hidden)
        if grad_hidden_MH is not None and grad_weight_VH is not None and grad_bias_V is not None:
            ctx.save_for_backward(grad_hidden_MH, grad_weight_VH, grad_bias_V)
            ctx.scale = 1.0 / half_scale
            ctx.dtypes = (hidden_MH.dtype, weight_VH.dtype, bias_V.dtype)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In fp32: 16 bits would round the factor itself, or overflow.
        gradients = (
            (gradient.float() * (grad_outputs[0] * ctx.scale)).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*gradients, None, None)


def _chunk(
    hidden_MH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor,
    labels_M: torch.Tensor,
    with_gradient: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, _Gradients | None]:
    """Loss of some rows [], number of correct ones [], gradient of the logits times `scale` [M, V] and its sums [V]."""
    labels_M1 = labels_M.unsqueeze(1)
    logits_MV = torch.addmm(bias_V, hidden_MH, weight_VH.t()).float()
    own_M1 = logits_MV.gather(1, labels_M1)
    maximum_M1 = logits_MV.amax(1, keepdim=True)
    is_largest_M = (own_M1 >= maximum_M1).squeeze(1)
    if hidden_MH.dtype != torch.float32:
        is_largest_M = _still_largest(is_largest_M, logits_MV, hidden_MH, weight_VH, bias_V, labels_M)
    correct = is_largest_M.sum()
    # The logits are overwritten by their gradient.
    exponents_MV = logits_MV.sub_(maximum_M1).exp_()
    total_M1 = exponents_MV.sum(1, keepdim=True)
    loss = (total_M1.log() + maximum_M1 - own_M1).sum()
    if not with_gradient:
        return loss, correct, None
    gradient_MV = exponents_MV.div_(total_M1)
    gradient_MV.scatter_add_(1, labels_M1, torch.full_like(own_M1, -1.0))
    if scale != 1.0:
        gradient_MV.mul_(scale)
    return loss, correct, (gradient_MV.to(hidden_MH.dtype), gradient_MV.sum(0))


def _still_largest(
    is_largest_M: torch.Tensor,
    logits_MV: torch.Tensor,
    hidden_MH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor,
    labels_M: torch.Tensor,
) -> torch.Tensor:
    """Rows whose label has the largest logit in fp32 too, of those whose label has it after rounding to 16 bits.

    Rounding keeps the order but makes ties, all of which would count as correct. The largest is among the tied ones.
    """
    rows_R = is_largest_M.nonzero().squeeze(1)
    logits_RV = logits_MV[rows_R]
    ties_R, ids = (logits_RV == logits_RV.gather(1, labels_M[rows_R].unsqueeze(1))).nonzero().unbind(1)
    rows = rows_R[ties_R]
    # In blocks: a model of zeros has as many ties as logits.
    blocks = zip(torch.split(rows, _BLOCK_TIES), torch.split(ids, _BLOCK_TIES), strict=True)
    products = [(hidden_MH[row].float() * weight_VH[one].float()).sum(1) for row, one in blocks]
    exact = torch.cat([*products, bias_V.new_empty(0, dtype=torch.float32)]) + bias_V[ids].float()
    largest_M = exact.new_full((len(hidden_MH),), -torch.inf).scatter_reduce_(0, rows, exact, "amax")
    own = ids == labels_M[rows]
    still_largest_M = torch.zeros_like(is_largest_M)
    still_largest_M[rows[own]] = exact[own] >= largest_M[rows[own]]
    return still_largest_M


def _chunk_on_gpu(
    hidden_MH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor,
    labels_M: torch.Tensor,
    with_gradient: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, _Gradients | None]:
    """As `_chunk`. 16-bit products are not rounded before the softmax, as ties would count as correct."""
    from training.kernels.logits_kernel import cross_entropy_of_logits

    logits_MV = _aligned_rows(hidden_MH, weight_VH.shape[0], torch.float32)
    if hidden_MH.dtype == torch.float32:
        torch.mm(hidden_MH, weight_VH.t(), out=logits_MV)
    else:
        torch.mm(hidden_MH, weight_VH.t(), out_dtype=torch.float32, out=logits_MV)
    gradient_MV = _aligned_rows(hidden_MH, weight_VH.shape[0], hidden_MH.dtype) if with_gradient else None
    losses_M, correct_M = cross_entropy_of_logits(logits_MV, bias_V, labels_M, gradient_MV, scale)
    gradients = None if gradient_MV is None else (gradient_MV, gradient_MV.sum(0, dtype=torch.float32))
    return losses_M.sum(), correct_M.sum(), gradients


def _aligned_rows(hidden_MH: torch.Tensor, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """An uninitialized [M, columns] view of longer, aligned rows."""
    length = -(-columns // _ALIGNED_ELEMENTS) * _ALIGNED_ELEMENTS
    return torch.empty(hidden_MH.shape[0], length, dtype=dtype, device=hidden_MH.device)[:, :columns]


def linear_cross_entropy(
    hidden_MH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor, labels_M: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy of a linear layer's logits, and the number of labels with the largest logit.

    Args:
        hidden_MH: [M, H]. weight_VH: [V, H]. bias_V: [V]. labels_M: [M] int64.

    Returns:
        loss [] float32, differentiable; correct [] int64.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _LinearCrossEntropy.apply(
        hidden_MH, weight_VH, bias_V, labels_M, torch.is_grad_enabled()
    )
    return result


def token_log_probabilities(
    hidden_MH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor, ids_M: torch.Tensor
) -> torch.Tensor:
    """log softmax(hidden @ weight' + bias) at one token of each row, [M] float32.

    Logits are made for all rows and a block of the vocabulary at a time; only sums of their exponentials are kept.
    """
    blocks = zip(torch.split(weight_VH, _BLOCK_COLUMNS), torch.split(bias_V, _BLOCK_COLUMNS), strict=True)
    sums = [torch.logsumexp(functional.linear(hidden_MH, weight, bias).float(), dim=1) for weight, bias in blocks]
    wanted_M = (hidden_MH.float() * weight_VH[ids_M].float()).sum(1) + bias_V[ids_M].float()
    return wanted_M - torch.logsumexp(torch.stack(sums), dim=0)


def classification_loss(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy and number of correct rows; logits_BC [B, C], labels_B [B] int64."""
    logits_BC = logits_BC.float()
    return functional.cross_entropy(logits_BC, labels_B, reduction="sum"), (logits_BC.argmax(1) == labels_B).sum()
