"""Attention on a CPU, all bins at once, against PyTorch's in double precision, sequence by sequence."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from training.kernels import attention_products, binned_attention
from training.kernels.packed_attention import packed_attention

HEADS, HEAD_SIZE = 3, 16
LENGTHS = (40, 40, 37, 12, 1)
NUM_TOKENS = sum(LENGTHS)
CU_SEQLENS = torch.tensor([0, *LENGTHS]).cumsum(0).int()

KERNELS = {
    "fp32": (torch.float32, False, False),
    "emulated bf16": (torch.bfloat16, False, False),
    "AVX512-BF16": (torch.bfloat16, True, False),
    "AMX": (torch.bfloat16, True, True),
}
"""Type, and what the processor is said to have. Products in bf16 work on any."""
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.01}
"""bf16 has eight bits; PyTorch's own kernel is 0.005 off here."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=KERNELS)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    dtype, has_bf16_products, has_amx = KERNELS[request.param]
    monkeypatch.setattr(binned_attention, "has_bf16_products", lambda: has_bf16_products)
    for module in (binned_attention, attention_products):
        monkeypatch.setattr(module, "has_amx", lambda: has_amx)
    return dtype


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Query, key and value [T, 3, N, D], and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    joined = torch.randn((NUM_TOKENS, 3, HEADS, HEAD_SIZE), generator=generator).to(dtype)
    gradient = torch.randn((NUM_TOKENS, HEADS, HEAD_SIZE), generator=generator).to(dtype)
    return joined.requires_grad_(), gradient


def packed(joined: torch.Tensor, dropout_p: float = 0.0, is_causal: bool = False) -> torch.Tensor:
    return packed_attention(joined, CU_SEQLENS, max(LENGTHS), dropout_p, is_causal=is_causal)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.detach().double() - wanted.detach()).norm() / wanted.detach().norm())


def one_by_one(joined: torch.Tensor, is_causal: bool) -> torch.Tensor:
    """Each sequence by itself, without padding."""
    outputs = []
    for rows in torch.split(joined, list(LENGTHS)):
        query, key, value = (row.transpose(0, 1) for row in rows.unbind(1))
        outputs.append(scaled_dot_product_attention(query, key, value, is_causal=is_causal).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 40 * 40, 1 << 22])
@pytest.mark.parametrize("is_causal", [False, True])
def test_output_and_gradients_are_attentions(
    dtype: torch.dtype, chunk_bytes: int, is_causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_CHUNK_BYTES", "_CHUNK_BYTES_WITH_AMX"):
        monkeypatch.setattr(attention_products, name, chunk_bytes)
    joined, gradient = inputs(dtype)
    exact = joined.detach().double().requires_grad_()
    found, wanted = packed(joined, is_causal=is_causal), one_by_one(exact, is_causal)
    assert found.dtype == dtype
    (found_gradient,) = torch.autograd.grad(found, joined, gradient)
    (wanted_gradient,) = torch.autograd.grad(wanted, exact, gradient.double())
    assert relative_error(found, wanted) < TOLERANCES[dtype]
    for place in range(3):
        assert relative_error(found_gradient[:, place], wanted_gradient[:, place]) < TOLERANCES[dtype]


def test_fp32_is_pytorchs_kernel_bit_for_bit() -> None:
    joined, gradient = inputs(torch.float32)
    parts = joined[:96].detach().requires_grad_()
    found = packed_attention(parts, torch.tensor([0, 48, 96], dtype=torch.int32), 48, 0.0)
    query, key, value = parts.view(2, 48, 3, HEADS, HEAD_SIZE).permute(2, 0, 3, 1, 4)
    wanted = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(0, 1)
    assert torch.equal(found, wanted)
    for one, other in zip(
        torch.autograd.grad(found, parts, gradient[:96]), torch.autograd.grad(wanted, parts, gradient[:96]), strict=True
    ):
        assert torch.equal(one, other)


def test_dropout_is_the_same_in_both_passes(dtype: torch.dtype) -> None:
    joined, _ = inputs(dtype)
    torch.manual_seed(5)
    outputs = [packed(joined, dropout_p=0.3) for _ in range(2)]
    assert not torch.equal(*outputs)
    torch.manual_seed(5)
    assert torch.equal(packed(joined, dropout_p=0.3), outputs[0])
    # The output is linear in the values, so with the same masks <output, output> = <gradient of values, values>.
    (gradient,) = torch.autograd.grad(outputs[0], joined, outputs[0].detach())
    output, values = outputs[0].detach().double(), joined[:, 2].detach().double()
    assert abs((gradient[:, 2] * values).sum() / output.square().sum() - 1.0) < 0.005


def test_gradients_with_dropout_are_those_of_the_same_masks() -> None:
    joined, gradient = inputs(torch.float32)

    def output_of(changed: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)
        return packed(changed, dropout_p=0.3)

    (found,) = torch.autograd.grad(output_of(joined), joined, gradient)
    direction = torch.randn(joined.shape, generator=torch.Generator().manual_seed(1))
    step = 1e-3
    with torch.no_grad():
        change = output_of(joined + step * direction) - output_of(joined - step * direction)
    along = float((change * gradient).sum()) / (2 * step)
    assert abs(float((found * direction).sum()) - along) < 1e-3 * float(gradient.norm())


def test_dropout_keeps_the_mean_and_removes_its_share(dtype: torch.dtype) -> None:
    joined, _ = inputs(dtype)
    torch.manual_seed(1)
    plain = packed(joined).double()
    many = torch.stack([packed(joined, dropout_p=0.2) for _ in range(400)])
    assert relative_error(many.double().mean(0), plain) < 0.05
    # A token that attends to itself alone keeps its value, divided by 1 - p, or loses it.
    alone = many[:, -1].flatten(0, 1)
    kept = (alone != 0).any(1).float().mean()
    assert abs(float(kept) - 0.8) < 0.05


def test_memory_grows_with_the_length_and_not_with_its_square(dtype: torch.dtype) -> None:
    joined, _ = inputs(dtype)
    for dropout_p in (0.0, 0.1):
        saved_bytes: list[int] = []

        def note(tensor: torch.Tensor, saved_bytes: list[int] = saved_bytes) -> torch.Tensor:
            saved_bytes.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            packed(joined, dropout_p)
        assert saved_bytes
        # The three inputs, the output with little padding, and of each row and head a number in fp32.
        of_a_head = 4 * HEAD_SIZE * joined.element_size() + 4
        assert sum(saved_bytes) <= 1.4 * NUM_TOKENS * HEADS * of_a_head
