"""The pre-training losses; masked LM is computed without materializing all logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.nn import functional

MLM_DENOMINATOR_EPS = 1e-5
"""Added to the number of masked tokens, as in run_pretraining.py, `get_masked_lm_output`."""

_ALIGNED_ELEMENTS = 64
"""Row lengths of a GPU's logits are multiples of this: a vocabulary of 30,522 keeps cuBLAS from its fast kernels."""

_HALF_SCALE = 1024.0
"""Factor of fp16 gradients until backward: probabilities below 6e-8 would be 0."""

_CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits per chunk: enough rows for fast products, 16 MiB on a CPU."""

_GROUP_ELEMENTS = 1 << 25
"""Gradients of logits in 16 bits on a CPU, 64 MiB, of which one product makes the gradient of the weight.
More rows have several products, added up in fp32."""

_LARGEST_EXPONENT = 60.0
"""Of e, so that a sum over any vocabulary is a number in fp32, and none of e to its negative is lost."""

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
        chunk, rows, group_rows = _chunks_of(hidden_MH, weight_VH.shape[0])
        half_scale = _HALF_SCALE if hidden_MH.dtype == torch.float16 else 1.0
        loss = torch.zeros((), dtype=torch.float32, device=hidden_MH.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden_MH.device)
        grad_hidden_MH = torch.empty_like(hidden_MH) if with_gradients else None
        grad_weight_VH: torch.Tensor | None = None
        grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if with_gradients else None
        groups = zip(torch.split(hidden_MH, group_rows), torch.split(labels_M, group_rows), strict=True)
        for number, (hidden, labels) in enumerate(groups):
            gradient_MV = _aligned_rows(hidden, weight_VH.shape[0]) if with_gradients else None
            for start in range(0, hidden.shape[0], rows):
                part = slice(start, start + rows)
                own = None if gradient_MV is None else gradient_MV[part]
                chunk_loss, chunk_correct, column_sums = chunk(
                    hidden[part], weight_VH, bias_V, labels[part], own, half_scale
                )
                loss += chunk_loss
                correct += chunk_correct
                if grad_bias_V is not None and column_sums is not None:
                    grad_bias_V += column_sums
            if gradient_MV is None or grad_hidden_MH is None:
                continue
            first = number * group_rows
            torch.mm(gradient_MV, weight_VH, out=grad_hidden_MH[first : first + len(hidden)])
            grad_weight_VH = _sum_of_products(grad_weight_VH, gradient_MV, hidden)
        if grad_hidden_MH is not None and grad_bias_V is not None:
            if grad_weight_VH is None:
                grad_weight_VH = torch.zeros_like(weight_VH)
            ctx.save_for_backward(grad_hidden_MH, grad_weight_VH, grad_bias_V)
            ctx.scale = 1.0 / half_scale
            ctx.dtypes = (hidden_MH.dtype, weight_VH.dtype, bias_V.dtype)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        factor = grad_outputs[0] * ctx.scale
        gradients = (
            _scaled(gradient, factor).to(dtype) for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*gradients, None, None)


_Chunk: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float],
    tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
]
"""Of some rows: their loss [], the number of correct ones [], and the sums of the gradient's columns [V] or None.
Arguments are hidden_MH, weight_VH, bias_V, labels_M, gradient_MV, which becomes the gradient of the logits times the
last argument, or None."""


def _chunks_of(hidden_MH: torch.Tensor, vocab_size: int) -> tuple[_Chunk, int, int]:
    """How a chunk is computed, its rows, and the rows of which one product makes the gradient of the weight."""
    rows = chunk_rows(hidden_MH.device.type, vocab_size)
    if hidden_MH.device.type == "cuda":
        return _chunk_on_gpu, rows, rows
    if hidden_MH.element_size() >= torch.float32.itemsize:
        return _chunk_in_place, rows, rows
    return _chunk_in_16_bits, rows, rows * max(1, _GROUP_ELEMENTS // (rows * vocab_size))


def _chunk_in_place(
    hidden_MH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor,
    labels_M: torch.Tensor,
    gradient_MV: torch.Tensor | None,
    _scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    labels_M1 = labels_M.unsqueeze(1)
    logits_MV = torch.addmm(bias_V, hidden_MH, weight_VH.t(), out=gradient_MV)
    own_M1 = logits_MV.gather(1, labels_M1)
    maximum_M1 = logits_MV.amax(1, keepdim=True)
    loss = _cross_entropy(logits_MV.sub_(maximum_M1), maximum_M1, own_M1, labels_M1, gradient_MV is not None)
    correct = (own_M1 >= maximum_M1).sum()
    return loss, correct, None if gradient_MV is None else gradient_MV.sum(0)


def _chunk_in_16_bits(
    hidden_MH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor,
    labels_M: torch.Tensor,
    gradient_MV: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    labels_M1 = labels_M.unsqueeze(1)
    logits_MV = torch.addmm(bias_V, hidden_MH, weight_VH.t()).float()
    own_M1 = logits_MV.gather(1, labels_M1)
    largest_other_M1 = logits_MV.scatter_(1, labels_M1, -torch.inf).amax(1, keepdim=True)
    logits_MV.scatter_(1, labels_M1, own_M1)
    is_largest_M = (own_M1 > largest_other_M1).squeeze(1)
    tied_R = (own_M1 == largest_other_M1).squeeze(1).nonzero().squeeze(1)
    is_largest_M[tied_R] = _largest_of_ties(logits_MV[tied_R], hidden_MH[tied_R], weight_VH, bias_V, labels_M[tied_R])
    shift_M1 = torch.maximum(own_M1, largest_other_M1)
    # Exponentials of usual logits are numbers without it.
    if float(shift_M1.abs().amax()) > _LARGEST_EXPONENT:
        logits_MV.sub_(shift_M1)
    else:
        shift_M1.zero_()
    loss, correct = _cross_entropy(logits_MV, shift_M1, own_M1, labels_M1, gradient_MV is not None), is_largest_M.sum()
    if gradient_MV is None:
        return loss, correct, None
    gradient_MV.copy_(logits_MV.mul_(scale) if scale != 1.0 else logits_MV)
    return loss, correct, logits_MV.sum(0)


def _cross_entropy(
    shifted_MV: torch.Tensor,
    shift_M1: torch.Tensor,
    own_M1: torch.Tensor,
    labels_M1: torch.Tensor,
    with_gradient: bool,
) -> torch.Tensor:
    """Loss [] of logits, of which `shifted_MV` is what `shift_M1` leaves and `own_M1` are the labels'.

    `shifted_MV` is overwritten, by the gradient if there is to be one.
    """
    total_M1 = shifted_MV.exp_().sum(1, keepdim=True)
    if with_gradient:
        shifted_MV.div_(total_M1).scatter_add_(1, labels_M1, torch.full_like(own_M1, -1.0))
    return (total_M1.log() + shift_M1 - own_M1).sum()


def _largest_of_ties(
    logits_RV: torch.Tensor,
    hidden_RH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor,
    labels_R: torch.Tensor,
) -> torch.Tensor:
    """Whether the label has the largest logit in fp32 too, of rows where it shares it after rounding to 16 bits.

    Rounding keeps the order but makes ties, all of which would count as correct. The largest is among the tied ones.
    """
    rows, ids = (logits_RV == logits_RV.gather(1, labels_R.unsqueeze(1))).nonzero().unbind(1)
    # In blocks: a model of zeros has as many ties as logits.
    blocks = zip(torch.split(rows, _BLOCK_TIES), torch.split(ids, _BLOCK_TIES), strict=True)
    products = [(hidden_RH[row].float() * weight_VH[one].float()).sum(1) for row, one in blocks]
    exact = torch.cat([*products, bias_V.new_empty(0, dtype=torch.float32)]) + bias_V[ids].float()
    largest_R = exact.new_full((len(hidden_RH),), -torch.inf).scatter_reduce_(0, rows, exact, "amax")
    own_R = exact[ids == labels_R[rows]]
    return own_R >= largest_R


def _chunk_on_gpu(
    hidden_MH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor,
    labels_M: torch.Tensor,
    gradient_MV: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """16-bit products are not rounded before the softmax, as ties would count as correct."""
    from training.kernels.logits_kernel import cross_entropy_of_logits

    logits_MV = _aligned_rows(hidden_MH, weight_VH.shape[0], torch.float32)
    if hidden_MH.dtype == torch.float32:
        torch.mm(hidden_MH, weight_VH.t(), out=logits_MV)
    else:
        torch.mm(hidden_MH, weight_VH.t(), out_dtype=torch.float32, out=logits_MV)
    losses_M, correct_M = cross_entropy_of_logits(logits_MV, bias_V, labels_M, gradient_MV, scale)
    column_sums = None if gradient_MV is None else gradient_MV.sum(0, dtype=torch.float32)
    return losses_M.sum(), correct_M.sum(), column_sums


def _aligned_rows(hidden_MH: torch.Tensor, columns: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Uninitialized [M, columns] on the same device and by default of the same type; on a GPU a view of longer rows."""
    length = -(-columns // _ALIGNED_ELEMENTS) * _ALIGNED_ELEMENTS if hidden_MH.is_cuda else columns
    return hidden_MH.new_empty(hidden_MH.shape[0], length, dtype=dtype)[:, :columns]


def _sum_of_products(total_VH: torch.Tensor | None, gradient_MV: torch.Tensor, hidden_MH: torch.Tensor) -> torch.Tensor:
    """The total, None at first, with gradient' @ hidden added in fp32; one product alone stays in its type."""
    if total_VH is None:
        return torch.mm(gradient_MV.t(), hidden_MH)
    if hidden_MH.dtype == torch.float32:
        return total_VH.addmm_(gradient_MV.t(), hidden_MH)
    return total_VH.float().add_(torch.mm(gradient_MV.t(), hidden_MH))


def _scaled(gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Their product, computed in fp32: 16 bits would round the factor itself, or overflow."""
    if gradient.is_cuda:
        return gradient.float() * factor
    # A number on the CPU is not rounded to the tensor's type.
    return gradient * factor


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
