"""The loss of the output layer, chunk by chunk, against PyTorch's own on all logits."""

from __future__ import annotations

import math

import pytest
import torch

from training.kernels import losses
from training.kernels.losses import linear_cross_entropy, token_log_probabilities

ROWS, HIDDEN, WORDS = 50, 7, 31

pytestmark = pytest.mark.usefixtures("one_thread")


def inputs(dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, HIDDEN), (WORDS, HIDDEN), (WORDS,))
    tensors = [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    return tensors, torch.randint(0, WORDS, (ROWS,), generator=generator)


def reference(
    tensors: list[torch.Tensor], labels_M: torch.Tensor, factor: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients in double precision."""
    hidden, weight, bias = exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    loss = torch.nn.functional.cross_entropy(hidden @ weight.t() + bias, labels_M, reduction="sum")
    torch.autograd.backward(factor * loss)
    return loss, [tensor.grad for tensor in exact if tensor.grad is not None]


def test_fused_cross_entropy_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(losses._CHUNK_ELEMENTS, "cpu", 16 * WORDS)
    (hidden, weight, bias), labels = inputs()
    loss, correct = linear_cross_entropy(hidden, weight, bias, labels)
    torch.autograd.backward(3.0 * loss)
    found = [tensor.grad.clone() for tensor in (hidden, weight, bias) if tensor.grad is not None]
    for tensor in (hidden, weight, bias):
        tensor.grad = None
    logits = hidden @ weight.t() + bias
    wanted = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    torch.autograd.backward(3.0 * wanted)
    torch.testing.assert_close(loss, wanted)
    assert int(correct) == int((logits.argmax(1) == labels).sum())
    for gradient, tensor in zip(found, (hidden, weight, bias), strict=True):
        torch.testing.assert_close(gradient, tensor.grad, atol=1e-4, rtol=1e-5)


def test_a_tie_by_rounding_is_no_correct_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(losses._CHUNK_ELEMENTS, "cpu", 16 * WORDS)
    generator = torch.Generator().manual_seed(0)
    hidden = (1.0 + 0.01 * torch.randn(400, HIDDEN, generator=generator)).bfloat16()
    weight = (1.0 + 0.01 * torch.randn(WORDS, HIDDEN, generator=generator)).bfloat16()
    bias = torch.zeros(WORDS, dtype=torch.bfloat16)
    labels = torch.randint(0, WORDS, (400,), generator=generator)
    exact = hidden.double() @ weight.double().t()
    labels[:50] = exact[:50].argmax(1)
    rounded = (hidden @ weight.t()).float()
    own = rounded.gather(1, labels.unsqueeze(1))
    wanted = int((exact.gather(1, labels.unsqueeze(1)) >= exact.amax(1, keepdim=True) - 1e-6).sum())
    _, correct = linear_cross_entropy(hidden, weight, bias, labels)
    assert int((own >= rounded.amax(1, keepdim=True)).sum()) > wanted + 10, "rounding makes no ties here"
    assert int(correct) == wanted


@pytest.mark.parametrize("columns", [1, 8, WORDS, 4_096])
def test_probabilities_of_tokens_over_blocks_of_the_vocabulary(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_BLOCK_COLUMNS", columns)
    (hidden, weight, bias), labels = inputs()
    weight = 40.0 * weight  # logits of hundreds, whose exponentials are not numbers
    logits = hidden.double() @ weight.double().t() + bias.double()
    wanted = torch.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
    found = token_log_probabilities(hidden, weight, bias, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize(("chunk_rows", "group_chunks"), [(64, 1), (16, 1), (16, 2), (16, 4)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_gradients_in_16_bits_are_those_of_exact_numbers_rounded(
    dtype: torch.dtype, tolerance: float, chunk_rows: int, group_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A factor that bfloat16 would round by 0.3 percent, and a loss scale that float16 cannot hold."""
    monkeypatch.setitem(losses._CHUNK_ELEMENTS, "cpu", chunk_rows * WORDS)
    monkeypatch.setattr(losses, "_GROUP_ELEMENTS", group_chunks * chunk_rows * WORDS)
    tensors, labels_M = inputs(dtype)
    factor = 257.0 if dtype == torch.bfloat16 else 70_000.0 / 65_536.0
    loss, _ = linear_cross_entropy(*tensors, labels_M)
    torch.autograd.backward(factor * loss)
    expected_loss, expected = reference(tensors, labels_M, factor)
    assert float(loss.detach()) == pytest.approx(float(expected_loss.detach()), rel=tolerance)
    for tensor, gradient in zip(tensors, expected, strict=True):
        assert tensor.grad is not None
        assert tensor.grad.dtype == dtype
        scale = gradient.abs().max()
        torch.testing.assert_close(tensor.grad.double() / scale, gradient / scale, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("shift", [0.0, 95.0, -120.0])
def test_logits_whose_exponentials_are_no_numbers(shift: float) -> None:
    (hidden, weight, bias), labels_M = inputs(torch.bfloat16)
    with torch.no_grad():
        bias += shift
    loss, _correct = linear_cross_entropy(hidden, weight, bias, labels_M)
    torch.autograd.backward(loss)
    logits = (hidden @ weight.t() + bias).detach().double()
    wanted = torch.nn.functional.cross_entropy(logits, labels_M, reduction="sum")
    assert float(loss.detach()) == pytest.approx(float(wanted), rel=0.05)  # logits of 95 are rounded by a quarter
    assert bias.grad is not None
    # The gradients of each row's logits add up to 0.
    assert bias.grad.isfinite().all()
    assert abs(float(bias.grad.double().sum())) < 0.02 * float(bias.grad.abs().sum())


def test_groups_of_rows_add_up_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """600 equal rows, one a group: in bf16 the sum would stop at 256 times a summand."""
    monkeypatch.setitem(losses._CHUNK_ELEMENTS, "cpu", WORDS)
    monkeypatch.setattr(losses, "_GROUP_ELEMENTS", 16 * WORDS)
    hidden = torch.ones(9_600, HIDDEN, dtype=torch.bfloat16)
    weight = torch.zeros(WORDS, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(WORDS, dtype=torch.bfloat16)
    loss, _ = linear_cross_entropy(hidden, weight, bias, torch.zeros(9_600, dtype=torch.int64))
    torch.autograd.backward(loss)
    assert weight.grad is not None
    assert float(weight.grad[1, 0]) == pytest.approx(9_600 / WORDS, rel=0.01)


def test_no_rows() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tensors, labels_M = inputs(dtype)
        loss, correct = linear_cross_entropy(tensors[0][:0], *tensors[1:], labels_M[:0])
        torch.autograd.backward(loss)
        assert (float(loss.detach()), int(correct)) == (0.0, 0)
        for tensor in tensors[1:]:
            assert tensor.grad is not None
            assert not tensor.grad.any()


def test_a_large_loss_scale_and_small_probabilities_survive_in_fp16() -> None:
    """A loss scale above 65,504 and a word of probability 8e-9 are both beyond fp16; their products are not."""
    hidden = torch.zeros(1, HIDDEN, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(WORDS, HIDDEN, dtype=torch.float16, requires_grad=True)
    bias = torch.zeros(WORDS, dtype=torch.float16)
    bias[:2], bias[3] = 10.0, -8.0
    with torch.no_grad():
        hidden[0, 0] = 1.0
    loss, _ = linear_cross_entropy(hidden, weight, bias.requires_grad_(), torch.tensor([0]))
    torch.autograd.backward(70_000.0 * loss)
    assert weight.grad is not None
    assert float(weight.grad[0, 0]) == pytest.approx(-35_000.0, rel=2e-3)
    assert float(weight.grad[3, 0]) == pytest.approx(70_000.0 * math.exp(-18.0) / 2.0, rel=2e-2)
