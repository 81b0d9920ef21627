"""Cases of the GPU's kernel for the loss of the output layer, which `test_logits_kernel.py` runs."""

from __future__ import annotations

import pytest
import torch

from training.kernels import losses
from training.kernels.logits_kernel import cross_entropy_of_logits
from training.kernels.losses import linear_cross_entropy


def drawn(rows: int, columns: int, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    logits_MV = torch.randn(rows, columns + padding, generator=generator)[:, :columns] * 6
    bias_V = torch.randn(columns, generator=generator)
    labels_M = torch.randint(0, columns, (rows,), generator=generator)
    # In some rows the label is the likeliest token, in one together with another.
    labels_M[: rows // 2] = (logits_MV + bias_V)[: rows // 2].argmax(1)
    if rows > 2:
        logits_MV[0, :2], bias_V[:2], labels_M[0] = 40.0, 1.0, 1
    return logits_MV, bias_V, labels_M


@pytest.mark.parametrize(("rows", "columns", "padding"), [(1, 1, 0), (5, 31, 33), (3, 300, 20), (2, 4_097, 63)])
@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1.0), (torch.bfloat16, 1.0), (torch.float16, 1024.0)])
def test_loss_and_gradient_are_those_of_torch(
    rows: int, columns: int, padding: int, dtype: torch.dtype, scale: float
) -> None:
    logits_MV, bias_V, labels_M = drawn(rows, columns, padding)
    buffer = torch.full((rows, columns + padding), 7.0, dtype=dtype)
    losses_M, correct_M = cross_entropy_of_logits(logits_MV, bias_V.to(dtype), labels_M, buffer[:, :columns], scale)
    exact = (logits_MV.double() + bias_V.to(dtype).double()).requires_grad_()
    wanted_M = torch.nn.functional.cross_entropy(exact, labels_M, reduction="none")
    torch.autograd.backward(wanted_M.sum())
    torch.testing.assert_close(losses_M.double(), wanted_M.detach(), atol=1e-5, rtol=1e-6)
    assert exact.grad is not None
    smallest = torch.finfo(dtype).smallest_normal
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(
        buffer[:, :columns].double(), exact.grad * scale, atol=scale * 1e-6 + smallest, rtol=tolerance
    )
    # What aligns the rows is not written.
    assert bool((buffer[:, columns:] == 7.0).all())
    own_M1 = exact.detach().gather(1, labels_M[:, None])
    assert correct_M.tolist() == (own_M1 >= exact.detach().amax(1, keepdim=True))[:, 0].long().tolist()


def test_without_gradients_the_logits_stay() -> None:
    logits_MV, bias_V, labels_M = drawn(6, 50)
    before = logits_MV.clone()
    losses_M, _ = cross_entropy_of_logits(logits_MV, bias_V, labels_M, None)
    wanted_M = torch.nn.functional.cross_entropy(before + bias_V, labels_M, reduction="none")
    torch.testing.assert_close(losses_M, wanted_M)
    assert torch.equal(logits_MV, before)


def test_values_that_are_not_finite_show_in_the_loss() -> None:
    logits_MV, bias_V, labels_M = drawn(3, 40)
    logits_MV[1, 5], logits_MV[2, 7] = float("nan"), float("inf")
    losses_M, _ = cross_entropy_of_logits(logits_MV, bias_V, labels_M, torch.empty_like(logits_MV))
    assert losses_M.isfinite().tolist() == [True, False, False]


def test_no_rows_have_no_loss() -> None:
    losses_M, correct_M = cross_entropy_of_logits(
        torch.empty(0, 9), torch.zeros(9), torch.zeros(0, dtype=torch.int64), None
    )
    assert (len(losses_M), len(correct_M)) == (0, 0)


@pytest.mark.usefixtures("one_thread")
def test_the_output_layer_has_the_gradients_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunks of a GPU in fp32, whose products a CPU can make too."""
    monkeypatch.setitem(losses._CHUNK_ELEMENTS, "cpu", 16 * 70)
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(*shape, generator=generator) for shape in ((40, 8), (70, 8), (70,))]
    labels_M = torch.randint(0, 70, (40,), generator=generator)
    found = []
    for chunk in (losses._chunk_in_place, losses._chunk_on_gpu):
        monkeypatch.setattr(losses, "_chunk_in_place", chunk)
        leaves = [value.clone().requires_grad_() for value in values]
        loss, correct = linear_cross_entropy(*leaves, labels_M)
        torch.autograd.backward(3.0 * loss)
        found.append([loss.detach(), correct, *(leaf.grad for leaf in leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
