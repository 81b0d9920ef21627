"""Cross-entropy of logits and its gradient in one Triton kernel, for a GPU; imported there only.

Written as single operations this takes about a dozen passes over the logits, which are larger than all activations of a
small model's layer. The kernel reads a row twice and writes its gradient once, as Liger's (Hsu et al., 2024, "Liger
Kernel", section 3.2). On a CPU it runs in Triton's interpreter, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_MOST_COLUMNS = 4_096
"""Logits of a row that a program holds at once."""
_WARPS = 8


@triton.jit
def _rows(
    logits: tl.tensor,
    bias: tl.tensor,
    labels: tl.tensor,
    losses: tl.tensor,
    correct: tl.tensor,
    gradient: tl.tensor,
    num_columns: tl.tensor,
    logits_stride: tl.tensor,
    gradient_stride: tl.tensor,
    scale: tl.tensor,
    with_gradient: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    own = tl.load(logits + row * logits_stride + label) + tl.load(bias + label).to(tl.float32)
    maximum = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    for start in range(0, num_columns, block):
        columns = start + tl.arange(0, block)
        is_column = columns < num_columns
        values = tl.load(logits + row * logits_stride + columns, mask=is_column, other=float("-inf"))
        values += tl.load(bias + columns, mask=is_column, other=0.0).to(tl.float32)
        larger = tl.maximum(maximum, tl.max(values, 0))
        # What was summed with a smaller maximum is scaled down.
        total = total * tl.exp(maximum - larger) + tl.sum(tl.exp(values - larger), 0)
        maximum = larger
    tl.store(losses + row, tl.log(total) + maximum - own)
    tl.store(correct + row, (own >= maximum).to(tl.int64))
    if with_gradient:
        for start in range(0, num_columns, block):
            columns = start + tl.arange(0, block)
            is_column = columns < num_columns
            values = tl.load(logits + row * logits_stride + columns, mask=is_column, other=float("-inf"))
            values += tl.load(bias + columns, mask=is_column, other=0.0).to(tl.float32)
            shares = tl.exp(values - maximum) / total - tl.where(columns == label, 1.0, 0.0)
            values = (shares * scale).to(gradient.dtype.element_ty)
            tl.store(gradient + row * gradient_stride + columns, values, mask=is_column)


def cross_entropy_of_logits(
    logits_MV: torch.Tensor,
    bias_V: torch.Tensor,
    labels_M: torch.Tensor,
    gradient_MV: torch.Tensor | None,
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of softmax(logits + bias) in each row, and whether the label has the largest logit.

    Args:
        logits_MV: [M, V] float32, the columns of a row next to one another.
        bias_V: [V]. labels_M: [M] int64.
        gradient_MV: [M, V] of any type, receives the gradient of the loss for the logits times `scale`; not without it.

    Returns:
        losses_M: [M] float32. correct_M: [M] int64, 0 or 1.
    """
    num_rows, num_columns = logits_MV.shape
    assert logits_MV.stride(1) == 1
    assert gradient_MV is None or gradient_MV.stride(1) == 1
    losses_M = torch.empty(num_rows, dtype=torch.float32, device=logits_MV.device)
    correct_M = torch.empty(num_rows, dtype=torch.int64, device=logits_MV.device)
    if num_rows:
        written_MV = logits_MV if gradient_MV is None else gradient_MV
        _rows[(num_rows,)](
            logits_MV,
            bias_V,
            labels_M,
            losses_M,
            correct_M,
            written_MV,
            num_columns,
            logits_MV.stride(0),
            written_MV.stride(0),
            scale,
            with_gradient=gradient_MV is not None,
            block=min(_MOST_COLUMNS, triton.next_power_of_2(num_columns)),
            num_warps=_WARPS,
        )
    return losses_M, correct_M
