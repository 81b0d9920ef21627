"""Attention by batched products of heads, some of them at a time; used where PyTorch's kernel for a CPU is slower.

Forward and backward take 0.16 to 0.57 of that kernel's time in bf16 on a CPU with AVX512-BF16, the least for short
sequences. In bf16, scores are rounded before the softmax, which is computed in fp32. The backward pass computes the
probabilities again, so memory grows with S and not with its square.

Shape suffixes as in training/bert/modeling.py, and H here: the heads of all sequences, B * N.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from training.kernels.dropout import keep_factors
from training.kernels.processor import has_amx

_CHUNK_BYTES, _CHUNK_BYTES_WITH_AMX = 1 << 20, 1 << 22
"""Of scores that are made at a time. AVX512-BF16: what stays in a core's cache; a quarter to twice as much is within a
sixth, larger chunks of long sequences take up to 1.5 times as long. With AMX fewer and larger products are faster,
backward by 0.7."""


def attend(
    heads_3BNSD: torch.Tensor, bias_B1SS: torch.Tensor | None, dropout_p: float, generator: torch.Generator
) -> torch.Tensor:
    """softmax(QK'/sqrt(D) + bias)V, with dropout of the probabilities.

    Args:
        heads_3BNSD: query, key and value, floating point.
        bias_B1SS: added to the scores, [1 or B, 1, 1 or S, S] of the same type.
        dropout_p: share of the probabilities that become 0.
        generator: of the numbers that dropout draws.

    Returns:
        [B, N, S, D].
    """
    query_HSD, key_HSD, value_HSD = _scaled(heads_3BNSD)
    attended_HSD = torch.empty_like(value_HSD)
    for heads, probabilities_HSS, kept_HSS in _probabilities(
        query_HSD, key_HSD, _for_each_head(bias_B1SS, heads_3BNSD), dropout_p, generator
    ):
        weights_HSS = probabilities_HSS if kept_HSS is None else kept_HSS.mul_(probabilities_HSS)
        torch.bmm(weights_HSS, value_HSD[heads], out=attended_HSD[heads])
    return attended_HSD.view(heads_3BNSD.shape[1:])


def attention_gradients(
    heads_3BNSD: torch.Tensor,
    grad_BNSD: torch.Tensor,
    bias_B1SS: torch.Tensor | None,
    dropout_p: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Gradients of query, key and value, [3, B, N, S, D]; the generator is in the state that it had for `attend`."""
    query_HSD, key_HSD, value_HSD = _scaled(heads_3BNSD)
    grad_HSD = grad_BNSD.reshape(query_HSD.shape)
    grads_3HSD = query_HSD.new_empty(3, *query_HSD.shape)
    grad_query_HSD, grad_key_HSD, grad_value_HSD = grads_3HSD
    for heads, probabilities_HSS, kept_HSS in _probabilities(
        query_HSD, key_HSD, _for_each_head(bias_B1SS, heads_3BNSD), dropout_p, generator
    ):
        weights_HSS = probabilities_HSS if kept_HSS is None else probabilities_HSS * kept_HSS
        torch.bmm(weights_HSS.mT, grad_HSD[heads], out=grad_value_HSD[heads])
        grad_HSS = torch.bmm(grad_HSD[heads], value_HSD[heads].mT)
        if kept_HSS is not None:
            grad_HSS.mul_(kept_HSS)
        grad_HSS = torch._softmax_backward_data(grad_HSS, probabilities_HSS, -1, grad_HSS.dtype)
        torch.bmm(grad_HSS, key_HSD[heads], out=grad_query_HSD[heads])
        torch.bmm(grad_HSS.mT, query_HSD[heads], out=grad_key_HSD[heads])
    grad_query_HSD.mul_(_scale(heads_3BNSD))
    return grads_3HSD.view(heads_3BNSD.shape)


def _scale(heads_3BNSD: torch.Tensor) -> float:
    return float(heads_3BNSD.shape[-1] ** -0.5)


def _scaled(heads_3BNSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, divided by sqrt(D), key and value: [H, S, D]."""
    query_HSD, key_HSD, value_HSD = heads_3BNSD.reshape(3, -1, *heads_3BNSD.shape[-2:])
    return query_HSD * _scale(heads_3BNSD), key_HSD, value_HSD


def _for_each_head(bias_B1SS: torch.Tensor | None, heads_3BNSD: torch.Tensor) -> torch.Tensor | None:
    if bias_B1SS is None:
        return None
    _, batch_size, num_heads, seqlen, _ = heads_3BNSD.shape
    bias_BNSS = bias_B1SS.expand(batch_size, num_heads, *bias_B1SS.shape[2:])
    return bias_BNSS.reshape(-1, *bias_B1SS.shape[2:]).expand(-1, seqlen, seqlen)


def _probabilities(
    scaled_query_HSD: torch.Tensor,
    key_HSD: torch.Tensor,
    bias_HSS: torch.Tensor | None,
    dropout_p: float,
    generator: torch.Generator,
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor | None]]:
    """Some heads at a time: which, their probabilities, and the factors of dropout, 0 or 1 / (1 - p)."""
    seqlen = key_HSD.shape[1]
    chunk_bytes = _CHUNK_BYTES_WITH_AMX if has_amx() else _CHUNK_BYTES
    count = max(1, chunk_bytes // (seqlen**2 * key_HSD.element_size()))
    for first in range(0, len(key_HSD), count):
        heads = slice(first, first + count)
        if bias_HSS is None:
            scores_HSS = torch.bmm(scaled_query_HSD[heads], key_HSD[heads].mT)
        else:
            scores_HSS = torch.baddbmm(bias_HSS[heads], scaled_query_HSD[heads], key_HSD[heads].mT)
        kept_HSS = keep_factors(scores_HSS, dropout_p, generator) if dropout_p else None
        yield heads, scores_HSS.softmax(-1), kept_HSS
