"""Attention on length bins: on a CPU as one operation for all bins, elsewhere PyTorch's, bin by bin.

Shape suffixes as in training/bert/modeling.py, and R: the rows of all bins, tokens and padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from training.kernels.attention_products import attend, attention_gradients
from training.kernels.length_bins import AttentionPlan, LengthBin
from training.kernels.processor import has_amx, has_bf16_products


def binned_attention(joined_T3ND: torch.Tensor, dropout_p: float, plan: AttentionPlan, is_causal: bool) -> torch.Tensor:
    """As `packed_attention`."""
    if joined_T3ND.device.type == "cpu":
        # Both passes draw the same numbers, so the masks of dropout need no memory.
        seed = int(torch.randint(2**62, ())) if dropout_p else 0
        attended_TND: torch.Tensor = _CpuAttention.apply(joined_T3ND, plan, dropout_p, seed, is_causal)
        return attended_TND
    rows = []
    for part in plan.bins:
        query_BNSD, key_BNSD, value_BNSD = _heads(part, joined_T3ND)
        # Padding follows the tokens of a row, so none of them attends to it in causal attention.
        mask_B11S = None if is_causal else part.mask_B11S
        attended_BNSD = scaled_dot_product_attention(
            query_BNSD, key_BNSD, value_BNSD, attn_mask=mask_B11S, dropout_p=dropout_p, is_causal=is_causal
        )
        rows.append(attended_BNSD.transpose(1, 2).flatten(0, 1))
    return plan.tokens_of(torch.cat(rows))


class _CpuAttention(torch.autograd.Function):
    """Gradients are written where they belong: autograd would fill and add a tensor of all tokens for each bin.

    In fp32 PyTorch's kernel computes each bin. In bf16 that kernel uses the processor's products in bf16 only forward,
    and only with AMX; with dropout PyTorch has no kernel, and its random numbers take most of the time. There, our own
    products take its place.
    """

    @staticmethod
    def forward(
        context: Any, joined_T3ND: torch.Tensor, plan: AttentionPlan, dropout_p: float, seed: int, is_causal: bool
    ) -> torch.Tensor:
        by_products = dropout_p > 0.0 or (joined_T3ND.dtype == torch.bfloat16 and has_bf16_products())
        with_kernel = not by_products or (not dropout_p and has_amx())
        generator = torch.Generator().manual_seed(seed)
        rows_RND = joined_T3ND.new_empty(sum(part.num_rows for part in plan.bins), *joined_T3ND.shape[2:])
        log_sums = []
        for part, own_BSND in zip(plan.bins, _split(rows_RND, plan), strict=True):
            heads_3BNSD = _heads(part, joined_T3ND)
            bias_B1SS = _bias(part, joined_T3ND.dtype, is_causal and not with_kernel)
            if with_kernel:
                attended_BNSD, log_sums_BNS = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    *heads_3BNSD, 0.0, is_causal, attn_mask=None if is_causal else bias_B1SS
                )
                log_sums.append(log_sums_BNS)
            else:
                attended_BNSD = attend(heads_3BNSD, bias_B1SS, dropout_p, generator)
            own_BSND.copy_(attended_BNSD.transpose(1, 2))
        context.plan, context.is_causal, context.by_products = plan, is_causal, by_products
        context.dropout_p, context.seed = dropout_p, seed
        if by_products:
            context.save_for_backward(joined_T3ND)
        else:
            context.save_for_backward(joined_T3ND, rows_RND, *log_sums)
        return plan.tokens_of(rows_RND)

    @staticmethod
    def backward(context: Any, grad_TND: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        plan, is_causal = context.plan, context.is_causal
        joined_T3ND, *kept = context.saved_tensors
        generator = torch.Generator().manual_seed(context.seed)
        grads_R3ND = joined_T3ND.new_empty(sum(part.num_rows for part in plan.bins), *joined_T3ND.shape[1:])
        outputs, log_sums = iter(_split(kept[0], plan) if kept else ()), iter(kept[1:])
        for part, own_BS3ND in zip(plan.bins, _split(grads_R3ND, plan), strict=True):
            heads_3BNSD = _heads(part, joined_T3ND)
            bias_B1SS = _bias(part, joined_T3ND.dtype, is_causal and context.by_products)
            grad_BSND = part.rows_of(grad_TND)
            if part.mask_B11S is not None:
                grad_BSND.masked_fill_(~part.mask_B11S.squeeze(1).transpose(1, 2).unsqueeze(-1), 0.0)
            grad_BNSD = grad_BSND.transpose(1, 2)
            if context.by_products:
                grads_3BNSD = attention_gradients(heads_3BNSD, grad_BNSD, bias_B1SS, context.dropout_p, generator)
                own_BS3ND.copy_(grads_3BNSD.permute(1, 3, 0, 2, 4))
                continue
            grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_BNSD,
                *heads_3BNSD,
                next(outputs).transpose(1, 2),
                next(log_sums),
                0.0,
                is_causal,
                attn_mask=None if is_causal else bias_B1SS,
            )
            for own_BSND, one_BNSD in zip(own_BS3ND.unbind(2), grads, strict=True):
                own_BSND.copy_(one_BNSD.transpose(1, 2))
        return plan.tokens_of(grads_R3ND), None, None, None, None


def _heads(part: LengthBin, joined_T3ND: torch.Tensor) -> torch.Tensor:
    """Query, key and value of a bin: [3, B, N, S, D], a view where the bin's tokens are one."""
    return part.rows_of(joined_T3ND).permute(2, 0, 3, 1, 4)


def _split(rows: torch.Tensor, plan: AttentionPlan) -> list[torch.Tensor]:
    """Each bin's part of the joined rows [R, ...], as [B, S, ...]."""
    parts = torch.split(rows, [part.num_rows for part in plan.bins])
    return [
        own.view(part.num_sequences, part.max_seqlen, *rows.shape[1:])
        for part, own in zip(plan.bins, parts, strict=True)
    ]


def _bias(part: LengthBin, dtype: torch.dtype, is_causal: bool) -> torch.Tensor | None:
    """Added to the scores: minus infinity at the keys that a query does not attend to; [1 or B, 1, 1 or S, S]."""
    if is_causal:
        # Padding follows the tokens of a row, so none of them attends to it.
        return torch.full((part.max_seqlen, part.max_seqlen), float("-inf"), dtype=dtype).triu_(1)[None, None]
    if part.mask_B11S is None:
        return None
    return torch.zeros(part.mask_B11S.shape, dtype=dtype).masked_fill_(~part.mask_B11S, float("-inf"))
