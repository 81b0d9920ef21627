"""Attention in bf16 on a CPU, some heads at a time, against PyTorch's in double precision."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from training.bert import attention
from training.bert.attention import packed_attention

HEADS, HEAD_SIZE = 3, 16
LENGTHS = (40, 40, 37, 12, 1)

pytestmark = pytest.mark.usefixtures("one_thread", "bf16_processor")

Tensors = list[torch.Tensor]


@pytest.fixture
def bf16_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice of such a processor; the products themselves work on any."""
    monkeypatch.setattr(attention, "cpu_has_bf16_products", lambda: True)


def test_other_processors_keep_pytorchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "cpu_has_bf16_products", lambda: False)
    monkeypatch.setattr(attention, "_cpu_bf16_attention", None)
    tensors, _ = inputs()
    assert packed(tensors).dtype == torch.bfloat16


def inputs() -> tuple[Tensors, torch.Tensor]:
    """Query, key and value [T, N, D] in bf16, and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    shape = (sum(LENGTHS), HEADS, HEAD_SIZE)
    tensors = [torch.randn(shape, generator=generator).bfloat16() for _ in range(4)]
    return [tensor.requires_grad_() for tensor in tensors[:3]], tensors[3]


def packed(tensors: Tensors, dropout_p: float = 0.0, is_causal: bool = False) -> torch.Tensor:
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    query, key, value = tensors
    return packed_attention(query, key, value, cu_seqlens, max(LENGTHS), dropout_p, is_causal=is_causal)


def gradients(output: torch.Tensor, gradient: torch.Tensor, tensors: Tensors) -> Tensors:
    return list(torch.autograd.grad(output, tensors, gradient.to(output.dtype)))


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).detach().norm() / wanted.detach().norm())


def one_by_one(tensors: Tensors, is_causal: bool) -> torch.Tensor:
    """Each sequence by itself, without padding."""
    outputs = []
    for rows in zip(*(torch.split(tensor, list(LENGTHS)) for tensor in tensors), strict=True):
        query, key, value = (row.transpose(0, 1) for row in rows)
        outputs.append(scaled_dot_product_attention(query, key, value, is_causal=is_causal).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("chunk_scores", [1, 2 * 40 * 40, 1 << 19])
@pytest.mark.parametrize("is_causal", [False, True])
def test_output_and_gradients_are_attentions(
    chunk_scores: int, is_causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_CHUNK_SCORES", chunk_scores)
    tensors, gradient = inputs()
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    found, wanted = packed(tensors, is_causal=is_causal), one_by_one(exact, is_causal)
    assert found.dtype == torch.bfloat16
    pairs = [(found, wanted)]
    pairs += zip(gradients(found, gradient, tensors), gradients(wanted, gradient, exact), strict=True)
    for ours, theirs in pairs:
        # bf16 has eight bits; PyTorch's own kernel is 0.005 off here.
        assert relative_error(ours, theirs) < 0.01


def test_dropout_is_the_same_in_both_passes() -> None:
    tensors, _ = inputs()
    torch.manual_seed(5)
    outputs = [packed(tensors, dropout_p=0.3) for _ in range(2)]
    assert not torch.equal(*outputs)
    torch.manual_seed(5)
    assert torch.equal(packed(tensors, dropout_p=0.3), outputs[0])
    # The output is linear in the values, so with the same masks <output, output> = <gradient of values, values>.
    output, values = outputs[0].detach().double(), tensors[2].detach().double()
    of_values = gradients(outputs[0], output, tensors)[2]
    assert abs((of_values * values).sum() / output.square().sum() - 1.0) < 0.005


def test_dropout_keeps_the_mean_and_removes_its_share() -> None:
    tensors, _ = inputs()
    torch.manual_seed(1)
    plain = packed(tensors).double()
    many = torch.stack([packed(tensors, dropout_p=0.2) for _ in range(400)])
    assert relative_error(many.double().mean(0), plain) < 0.05
    # A token that attends to itself alone keeps its value, divided by 1 - p, or loses it.
    alone = many[:, -1].flatten(0, 1)
    kept = (alone != 0).any(1).float().mean()
    assert abs(float(kept) - 0.8) < 0.05


def test_memory_grows_with_the_length_and_not_with_its_square() -> None:
    tensors, _ = inputs()
    saved_bytes: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved_bytes.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        packed(tensors)
    assert saved_bytes
    # Three of five sequences are one bin, with little padding; gathered rows may be kept in int64.
    assert max(saved_bytes) <= 1.2 * sum(LENGTHS) * HEADS * HEAD_SIZE * tensors[0].element_size()
