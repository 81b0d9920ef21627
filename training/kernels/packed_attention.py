"""Self-attention over packed sequences, without computing padding where the device has a kernel for that.

On a GPU in 16 bit: PyTorch's variable-length flash kernel. Elsewhere: length bins (training/kernels/length_bins.py).
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch.nn.attention.varlen import varlen_attn

from training.kernels.binned_attention import binned_attention
from training.kernels.length_bins import AttentionPlan, plan_attention

_HEAD_SIZE_STEP, _LARGEST_HEAD_SIZE = 8, 256
"""Of the variable-length kernel, which fails for others."""

_log = logging.getLogger(__name__)


def packed_attention(
    joined_T3ND: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    dropout_p: float,
    plan: AttentionPlan | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Bidirectional softmax(QK'/sqrt(D))V within each sequence of a packed batch.

    Args:
        joined_T3ND: query, key and value of each token, [T, 3, N, D], floating point.
        cu_seqlens: [B+1] int32 on the tokens' device.
        max_seqlen: length of the longest sequence, in tokens.
        dropout_p: dropout of the attention probabilities.
        plan: bins of this batch, shared by several layers; computed here if None.
        is_causal: a token attends only to itself and those before it in its sequence.

    Returns:
        [T, N, D].
    """
    if flash_attention_applies(joined_T3ND.device.type, joined_T3ND.dtype, joined_T3ND.shape[-1]):
        query_TND, key_TND, value_TND = joined_T3ND.unbind(1)
        tensors = (query_TND, key_TND, value_TND, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
        if dropout_p:
            # varlen_attn is this operator without its dropout.
            output, *_ = torch.ops.aten._flash_attention_forward(*tensors, dropout_p, is_causal, False)
        else:
            output = varlen_attn(*tensors, window_size=(-1, 0) if is_causal else (-1, -1))
        assert isinstance(output, torch.Tensor)
        return output
    if plan is None:
        plan = plan_attention(cu_seqlens.cpu()).moved(lambda tensor: tensor.to(joined_T3ND.device))
    return binned_attention(joined_T3ND, dropout_p, plan, is_causal)


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
