"""Dropout by 16 bits a number: shares, means, independence, gradients."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from training.kernels.dropout import Dropout, keep_factors

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1e-5])
def test_share_and_factor(dtype: torch.dtype, p: float) -> None:
    like = torch.empty(1_000, 1_003, dtype=dtype)
    factors = keep_factors(like, p, torch.Generator().manual_seed(1))
    assert factors.shape == like.shape
    assert factors.dtype == dtype
    used = round(p * 65_536) / 65_536
    assert set(factors.unique().tolist()) == {0.0, float(torch.tensor(1 / (1 - used), dtype=dtype))}
    dropped = int((factors == 0).sum())
    assert chisquare([dropped, like.numel() - dropped], [used * like.numel(), (1 - used) * like.numel()]).pvalue > 1e-4


def test_neighbours_are_independent() -> None:
    """Four numbers come from one of 64 bits: all sixteen patterns of them have their probability."""
    dropped = keep_factors(torch.empty(4_000_000), 0.25, torch.Generator().manual_seed(3)).view(-1, 4) == 0
    patterns = (dropped * torch.tensor([1, 2, 4, 8])).sum(1)
    counts = torch.bincount(patterns, minlength=16)
    wanted = [len(dropped) * 0.25 ** bin(one).count("1") * 0.75 ** (4 - bin(one).count("1")) for one in range(16)]
    assert chisquare(counts.tolist(), wanted).pvalue > 1e-4


def test_odd_numbers_of_elements_and_none() -> None:
    for count in (0, 1, 2, 3, 5):
        assert keep_factors(torch.empty(count), 0.5).shape == (count,)


def test_certain_dropout_leaves_nothing() -> None:
    assert not keep_factors(torch.empty(100), 1.0).any()


def test_a_layer_in_training_and_out_of_it() -> None:
    hidden = torch.ones(50, 40, requires_grad=True)
    layer = Dropout(0.2)
    output = layer(hidden)
    output.sum().backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, output.detach())
    torch.manual_seed(2)
    first = layer(hidden)
    torch.manual_seed(2)
    assert torch.equal(layer(hidden), first)
    assert layer.eval()(hidden) is hidden
    assert Dropout(0.0)(hidden) is hidden
