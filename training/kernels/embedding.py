"""Rows of a table whose gradient on a CPU is added up in fp32, and only for the rows that occur.

In 16 bits on a CPU, PyTorch adds each token to its row in 16 bits. The sum of a row that many tokens share, such as a
token type or a frequent word, no longer grows where a token is less than 1/256 of it: of 16,000 tokens with two types,
half of the gradient is lost.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Embedding(nn.Embedding):
    """Rows [T, H] of a table by ids [T]; on a CPU their sums are rounded once.

    `is_tied` marks a table that an output layer uses too: that layer's gradient has all rows, and autograd adds to it
    the few of the tokens, which are sparse. A table without such a layer must not have it, as optimizers expect dense
    gradients.
    """

    is_tied = False

    def __init__(self, num_embeddings: int, embedding_dim: int, dtype: torch.dtype | None = None) -> None:
        super().__init__(num_embeddings, embedding_dim, dtype=dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.weight.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        rows: torch.Tensor = _Rows.apply(input, self.weight, self.is_tied)
        return rows


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, ids_T: torch.Tensor, weight_VH: torch.Tensor, is_tied: bool) -> torch.Tensor:
        context.save_for_backward(ids_T)
        context.shape, context.is_tied = weight_VH.shape, is_tied
        return weight_VH.index_select(0, ids_T)

    @staticmethod
    def backward(context: Any, grad_TH: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        (ids_T,) = context.saved_tensors
        ids_U, places_T = ids_T.unique(return_inverse=True)
        exact_TH = grad_TH.float() if grad_TH.element_size() < 4 else grad_TH
        exact_UH = torch.ops.aten.embedding_dense_backward(exact_TH, places_T, len(ids_U), -1, False)
        sums_UH = exact_UH.to(grad_TH.dtype)
        if context.is_tied:
            sparse_VH = torch.sparse_coo_tensor(
                ids_U.unsqueeze(0), sums_UH, context.shape, is_coalesced=True, check_invariants=False
            )
            return None, sparse_VH, None
        return None, grad_TH.new_zeros(context.shape).index_copy_(0, ids_U, sums_UH), None
