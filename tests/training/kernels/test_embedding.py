"""The gradient of an embedding in 16 bits on a CPU against the sum in double precision."""

from __future__ import annotations

import pytest
import torch

from training.bert.heads import build_pretraining_model
from training.bert.modeling import BertModel
from training.kernels.embedding import Embedding
from training.settings.model import ModelConfig

HIDDEN = 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "num_rows"), [(16_000, 2), (16_000, 700), (50, 30_000), (1, 1)])
def test_the_gradient_is_the_sum_rounded_once(dtype: torch.dtype, num_tokens: int, num_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = Embedding(num_rows, HIDDEN, dtype=dtype)
    ids = torch.randint(0, num_rows, (num_tokens,), generator=generator)
    gradient = (torch.randn(num_tokens, HIDDEN, generator=generator) + 0.3).to(dtype)
    output = layer(ids)
    assert torch.equal(output, layer.weight[ids])
    (found,) = torch.autograd.grad(output, layer.weight, gradient)
    wanted = torch.zeros(num_rows, HIDDEN, dtype=torch.float64).index_add_(0, ids, gradient.double())
    assert found.dtype == dtype
    assert torch.equal(found != 0, wanted != 0)
    tolerance = 1 / 256 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tied_table_has_one_dense_gradient(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 40, (90,), generator=generator)
    gradients = []
    for is_tied in (False, True):
        layer = Embedding(50, HIDDEN, dtype=dtype)
        layer.is_tied = is_tied
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(-1, 1, layer.weight.numel()).view_as(layer.weight))
        for _ in range(2):  # the second time there is a gradient to add to
            logits = layer(ids).tanh() @ layer.weight.t()
            torch.autograd.backward(logits.float().square().sum())
        assert layer.weight.grad is not None
        assert layer.weight.grad.layout == torch.strided
        gradients.append(layer.weight.grad)
    assert torch.equal(*gradients)


def test_a_model_s_output_layers_add_sparse_rows_to_their_dense_gradient() -> None:
    for attention in ("bidirectional", "two_directions"):
        config = ModelConfig(
            hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, attention=attention
        )
        model = build_pretraining_model(config, 30)
        tables = [module for name, module in model.named_modules() if name.endswith("word_embeddings")]
        assert tables
        for table in tables:
            assert isinstance(table, Embedding)
            (rows,) = torch.autograd.grad(table(torch.tensor([3, 3])).sum(), table.weight)
            assert rows.layout == torch.sparse_coo
        assert not BertModel(config, 30).embeddings.word_embeddings.is_tied


def test_a_frozen_table_has_no_gradient() -> None:
    layer = Embedding(5, HIDDEN, dtype=torch.bfloat16).requires_grad_(False)
    assert not layer(torch.tensor([1, 4])).requires_grad
