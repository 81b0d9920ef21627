"""Self-attention over packed sequences, without computing padding where the device has a kernel for that.

On a GPU in 16 bit: PyTorch's variable-length flash kernel. Elsewhere: PyTorch's scaled dot product attention on length
bins, or our own in bf16 on a CPU that has it. Sequences are ordered by length and cut into bins of nearly equal
length, so padding inside a bin stays below an eighth of its tokens; a bin of one length whose tokens are contiguous is
a plain view.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

MAX_PADDED_SHARE = 0.125
_HEAD_SIZE_STEP, _LARGEST_HEAD_SIZE = 8, 256
"""Of the variable-length kernel, which fails for others."""
_CHUNK_SCORES = 1 << 19
"""How many scores are made at a time in bf16 on a CPU: 1 MB, which stays in a core's cache. 2^17 to 2^20 are within a
sixth of each other, larger chunks of long sequences up to 1.5 times slower."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LengthBin:
    """Sequences of nearly equal length, computed by one attention call.

    Either `start_token` is set (B contiguous sequences of exactly S tokens start there), or `tokens_BS` (int64)
    gathers them, with `mask_B11S` (bool, True = real token) marking padding.
    """

    num_sequences: int
    max_seqlen: int
    start_token: int | None
    tokens_BS: torch.Tensor | None
    mask_B11S: torch.Tensor | None


@dataclass(frozen=True)
class AttentionPlan:
    """The bins of one packed batch, shared by all layers.

    `restore_T` [T] int64 maps each token to its row in the bins' joined output; None if they are in order already.
    """

    bins: tuple[LengthBin, ...]
    restore_T: torch.Tensor | None

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> AttentionPlan:
        """The plan with all its tensors passed through `move`."""

        def optional(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else move(tensor)

        bins = [
            replace(part, tokens_BS=optional(part.tokens_BS), mask_B11S=optional(part.mask_B11S)) for part in self.bins
        ]
        return AttentionPlan(tuple(bins), optional(self.restore_T))


def plan_attention(cu_seqlens: npt.NDArray[np.int64] | torch.Tensor) -> AttentionPlan:
    """Cut a packed batch into length bins; the index tensors are on the CPU.

    Args:
        cu_seqlens: [B+1], integers on the CPU; sequence i holds tokens cu_seqlens[i] to cu_seqlens[i+1].
    """
    offsets = np.asarray(cu_seqlens, dtype=np.int64)
    lengths = np.diff(offsets)
    order = np.argsort(-lengths, kind="stable")
    bins: list[LengthBin] = []
    restore = np.empty(int(offsets[-1]), dtype=np.int64)
    row = 0
    for first, last in _bin_edges(lengths[order]):
        members = order[first:last]
        row += _add_bin(bins, offsets[members], lengths[members], restore, row)
    identity = row == len(restore) and bool((restore == np.arange(row)).all())
    return AttentionPlan(tuple(bins), None if identity else torch.from_numpy(restore))


def _bin_edges(descending_lengths: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    edges: list[tuple[int, int]] = []
    first, total = 0, len(descending_lengths)
    tokens_before = np.concatenate([[0], np.cumsum(descending_lengths)])
    while first < total:
        longest = int(descending_lengths[first])
        counts = np.arange(1, total - first + 1)
        real = tokens_before[first + 1 :] - tokens_before[first]
        fits = real >= (1.0 - MAX_PADDED_SHARE) * counts * longest
        last = first + int(np.flatnonzero(fits)[-1]) + 1
        edges.append((first, last))
        first = last
    return edges


def _add_bin(
    bins: list[LengthBin],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    restore: npt.NDArray[np.int64],
    first_row: int,
) -> int:
    count, longest = len(starts), int(lengths[0])
    uniform = int(lengths[-1]) == longest
    positions = np.arange(longest)
    tokens = starts[:, None] + positions
    real = positions < lengths[:, None]
    rows = np.arange(first_row, first_row + count * longest).reshape(count, longest)
    restore[tokens[real]] = rows[real]
    if uniform and bool((np.diff(starts) == longest).all()):
        bins.append(LengthBin(count, longest, int(starts[0]), None, None))
    else:
        gather = torch.from_numpy(np.where(real, tokens, starts[:, None]))
        mask = None if uniform else torch.from_numpy(real[:, None, None, :])
        bins.append(LengthBin(count, longest, None, gather, mask))
    return count * longest


def packed_attention(
    query_TND: torch.Tensor,
    key_TND: torch.Tensor,
    value_TND: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    dropout_p: float,
    plan: AttentionPlan | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Bidirectional softmax(QK'/sqrt(D))V within each sequence of a packed batch.

    Args:
        query_TND, key_TND, value_TND: [T, N, D], floating point.
        cu_seqlens: [B+1] int32 on the tokens' device.
        max_seqlen: length of the longest sequence, in tokens.
        dropout_p: dropout of the attention probabilities.
        plan: bins of this batch, shared by several layers; computed here if None.
        is_causal: a token attends only to itself and those before it in its sequence.

    Returns:
        [T, N, D].
    """
    if flash_attention_applies(query_TND.device.type, query_TND.dtype, query_TND.shape[-1]):
        tensors = (query_TND, key_TND, value_TND, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
        if dropout_p:
            # varlen_attn is this operator without its dropout.
            output, *_ = torch.ops.aten._flash_attention_forward(*tensors, dropout_p, is_causal, False)
        else:
            output = varlen_attn(*tensors, window_size=(-1, 0) if is_causal else (-1, -1))
        assert isinstance(output, torch.Tensor)
        return output
    if plan is None:
        plan = plan_attention(cu_seqlens.cpu()).moved(lambda tensor: tensor.to(query_TND.device))
    return _binned_attention(query_TND, key_TND, value_TND, dropout_p, plan, is_causal)


def _binned_attention(
    query_TND: torch.Tensor,
    key_TND: torch.Tensor,
    value_TND: torch.Tensor,
    dropout_p: float,
    plan: AttentionPlan,
    is_causal: bool,
) -> torch.Tensor:
    num_heads, head_size = query_TND.shape[1:]
    outputs = []
    for part in plan.bins:
        query_BNSD, key_BNSD, value_BNSD = (
            _rows_of(part, tensor).transpose(1, 2) for tensor in (query_TND, key_TND, value_TND)
        )
        # Padding follows the tokens of a row, so none of them attends to it in causal attention.
        mask_B11S = None if is_causal else part.mask_B11S
        attend = _cpu_bf16_attention if _is_bf16_of_the_cpu(query_BNSD) else scaled_dot_product_attention
        attended_BNSD = attend(
            query_BNSD, key_BNSD, value_BNSD, attn_mask=mask_B11S, dropout_p=dropout_p, is_causal=is_causal
        )
        outputs.append(attended_BNSD.transpose(1, 2).reshape(-1, num_heads, head_size))
    rows = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return rows if plan.restore_T is None else rows.index_select(0, plan.restore_T)


def _rows_of(part: LengthBin, tensor_TND: torch.Tensor) -> torch.Tensor:
    shape = (part.num_sequences, part.max_seqlen, *tensor_TND.shape[1:])
    if part.start_token is not None:
        end = part.start_token + part.num_sequences * part.max_seqlen
        return tensor_TND[part.start_token : end].view(shape)
    assert part.tokens_BS is not None
    return tensor_TND.index_select(0, part.tokens_BS.view(-1)).view(shape)


@cache
def cpu_has_bf16_products() -> bool:
    """Whether the processor has instructions for products in bf16: AMX or AVX512-BF16."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def _is_bf16_of_the_cpu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16 and cpu_has_bf16_products()


def _cpu_bf16_attention(
    query_BNSD: torch.Tensor,
    key_BNSD: torch.Tensor,
    value_BNSD: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
) -> torch.Tensor:
    """As PyTorch's `scaled_dot_product_attention`, whose kernel for a CPU does not use its products in bf16.

    Forward and backward take 0.16 to 0.57 of its time on a CPU with AVX512-BF16, the least for short sequences, and
    0.72 to 0.88 with dropout, whose random numbers are most of it. Scores are rounded to bf16 before the softmax, which
    is computed in fp32.
    """
    batch_size, num_heads, seqlen, head_size = query_BNSD.shape
    bias_HSS = None
    if is_causal:
        bias_SS = query_BNSD.new_full((seqlen, seqlen), float("-inf")).triu(1)
        bias_HSS = bias_SS.expand(batch_size * num_heads, seqlen, seqlen)
    elif attn_mask is not None:
        bias_B11S = query_BNSD.new_zeros(attn_mask.shape).masked_fill_(~attn_mask, float("-inf"))
        bias_BN1S = bias_B11S.expand(batch_size, num_heads, 1, seqlen)
        bias_HSS = bias_BN1S.reshape(-1, 1, seqlen).expand(batch_size * num_heads, seqlen, seqlen)
    # The backward pass draws the same numbers again, so the masks of dropout need no memory.
    seed = int(torch.randint(2**62, ())) if dropout_p else 0
    query_HSD, key_HSD, value_HSD = (
        tensor.reshape(-1, seqlen, head_size) for tensor in (query_BNSD, key_BNSD, value_BNSD)
    )
    attended_HSD: torch.Tensor = _CpuBf16Attention.apply(query_HSD, key_HSD, value_HSD, bias_HSS, dropout_p, seed)
    return attended_HSD.view(query_BNSD.shape)


class _CpuBf16Attention(torch.autograd.Function):
    """Attention of H heads, those of all sequences, some at a time.

    The backward pass computes the probabilities again, so memory grows with S and not with its square.
    """

    @staticmethod
    def forward(
        context: Any,
        query_HSD: torch.Tensor,
        key_HSD: torch.Tensor,
        value_HSD: torch.Tensor,
        bias_HSS: torch.Tensor | None,
        dropout_p: float,
        seed: int,
    ) -> torch.Tensor:
        query_HSD = query_HSD * query_HSD.shape[-1] ** -0.5
        attended_HSD = torch.empty_like(value_HSD)
        for heads, probabilities_HSS, kept_HSS in _probabilities(query_HSD, key_HSD, bias_HSS, dropout_p, seed):
            weights_HSS = probabilities_HSS if kept_HSS is None else probabilities_HSS * kept_HSS
            torch.bmm(weights_HSS, value_HSD[heads], out=attended_HSD[heads])
        context.save_for_backward(query_HSD, key_HSD, value_HSD, bias_HSS)
        context.dropout_p, context.seed = dropout_p, seed
        return attended_HSD

    @staticmethod
    def backward(context: Any, grad_HSD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_HSD, key_HSD, value_HSD, bias_HSS = context.saved_tensors
        grad_query_HSD, grad_key_HSD, grad_value_HSD = (torch.empty_like(value_HSD) for _ in range(3))
        chunks = _probabilities(query_HSD, key_HSD, bias_HSS, context.dropout_p, context.seed)
        for heads, probabilities_HSS, kept_HSS in chunks:
            weights_HSS = probabilities_HSS if kept_HSS is None else probabilities_HSS * kept_HSS
            torch.bmm(weights_HSS.mT, grad_HSD[heads], out=grad_value_HSD[heads])
            grad_HSS = torch.bmm(grad_HSD[heads], value_HSD[heads].mT)
            if kept_HSS is not None:
                grad_HSS.mul_(kept_HSS)
            grad_HSS = torch.ops.aten._softmax_backward_data(grad_HSS, probabilities_HSS, -1, grad_HSS.dtype)
            torch.bmm(grad_HSS, key_HSD[heads], out=grad_query_HSD[heads])
            torch.bmm(grad_HSS.mT, query_HSD[heads], out=grad_key_HSD[heads])
        return grad_query_HSD.mul_(query_HSD.shape[-1] ** -0.5), grad_key_HSD, grad_value_HSD, None, None, None


def _probabilities(
    scaled_query_HSD: torch.Tensor, key_HSD: torch.Tensor, bias_HSS: torch.Tensor | None, dropout_p: float, seed: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor | None]]:
    """Some heads at a time: which, their probabilities, and the factors of dropout, 0 or 1 / (1 - p)."""
    count = max(1, _CHUNK_SCORES // key_HSD.shape[1] ** 2)
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, len(key_HSD), count):
        heads = slice(first, first + count)
        if bias_HSS is None:
            scores_HSS = torch.bmm(scaled_query_HSD[heads], key_HSD[heads].mT)
        else:
            scores_HSS = torch.baddbmm(bias_HSS[heads], scaled_query_HSD[heads], key_HSD[heads].mT)
        kept_HSS = None
        if dropout_p:
            kept_HSS = torch.empty_like(scores_HSS).bernoulli_(1.0 - dropout_p, generator=generator)
            kept_HSS.mul_(1.0 / (1.0 - dropout_p))
        yield heads, scores_HSS.softmax(-1), kept_HSS


@cache
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def flash_attention_applies(device_type: str, dtype: torch.dtype, head_size: int) -> bool:
    """Return whether the variable-length flash kernel applies. On a GPU, logs once why it does not."""
    if device_type != "cuda":
        return False
    if dtype not in (torch.bfloat16, torch.float16):
        reason = f"it does not support {dtype}; set pretraining.precision = bf16"
    elif head_size % _HEAD_SIZE_STEP or head_size > _LARGEST_HEAD_SIZE:
        reason = (
            f"it needs heads of a multiple of {_HEAD_SIZE_STEP} up to {_LARGEST_HEAD_SIZE}, these are of {head_size}; "
            "set another model.num_attention_heads"
        )
    else:
        return True
    _log.warning("attention: length-binned SDPA instead of the variable-length flash kernel: %s", reason)
    return False
