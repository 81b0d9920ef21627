"""What a student begins with and learns from, against slow references and torch's own losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipelines.contract.errors import InputError
from training.bert.heads import BertForPreTraining
from training.bert.modeling import initialize_weights
from training.distillation.losses import cosine_loss, soft_target_loss
from training.distillation.student import chosen_layers, every_other, student_weights
from training.kernels import losses
from training.settings.distillation import DistillationConfig
from training.settings.model import ModelConfig

MODEL = ModelConfig(hidden_size=8, num_hidden_layers=12, num_attention_heads=2, intermediate_size=16)


def test_every_other_layer_is_taken_as_it_is() -> None:
    assert [every_other(depth) for depth in (1, 2, 5, 12)] == [(0,), (0,), (0, 2, 4), (0, 2, 4, 6, 8, 10)]
    teacher = BertForPreTraining(MODEL, 50)
    initialize_weights(teacher, 0.2, 3)
    state = teacher.state_dict()
    for layers in (every_other(12), (0, 2, 4, 7, 9, 11)):
        student = BertForPreTraining(MODEL.model_copy(update={"num_hidden_layers": 6}), 50, next_sentence=False)
        found = student_weights(state, layers)
        assert found.keys() == student.state_dict().keys()
        for name, tensor in found.items():
            parts = name.split(".")
            if parts[2] == "layer":
                parts[3] = str(layers[int(parts[3])])
            assert torch.equal(tensor, state[".".join(parts)])


def test_layers_that_make_no_student_are_refused() -> None:
    assert chosen_layers(None, 4, "t") == (0, 2)
    assert chosen_layers((0, 3), 4, "t") == (0, 3)
    with pytest.raises(InputError, match="t: the student would have 1 layers, as many as its teacher"):
        chosen_layers(None, 1, "t")
    with pytest.raises(InputError, match="the student would have 2 layers"):
        chosen_layers((0, 1), 2, "t")
    with pytest.raises(InputError, match=r"teacher_layers names layer 4, but t has layers 0 to 3"):
        chosen_layers((0, 4), 4, "t")
    for layers in ((), (1, 0), (0, 0), (-1, 0)):
        with pytest.raises(ValueError, match=r"must name at least one layer|greater than or equal to 0"):
            DistillationConfig(teacher_layers=layers)
    with pytest.raises(ValueError, match="are all 0"):
        DistillationConfig(soft_target_weight=0, mlm_weight=0, cosine_weight=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.5])
def test_soft_targets_equal_a_slow_reference(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(losses._CHUNK_ELEMENTS, "cpu", 0)  # 16 rows at a time, of 50
    generator = torch.Generator().manual_seed(1)
    sizes = ((50, 8), (30, 8), (30,), (50, 12), (30, 12), (30,))
    tensors = [torch.randn(size, generator=generator) for size in sizes]
    own = [tensor.clone().requires_grad_() for tensor in tensors[:3]]
    slow = [tensor.clone().requires_grad_() for tensor in tensors[:3]]
    loss = soft_target_loss(*own, *tensors[3:], temperature)
    (0.7 * loss).backward()
    divergence = nn.KLDivLoss(reduction="sum")(
        torch.log_softmax((slow[0] @ slow[1].t() + slow[2]) / temperature, dim=1),
        torch.softmax((tensors[3] @ tensors[4].t() + tensors[5]) / temperature, dim=1),
    )
    expected = divergence * temperature**2
    (0.7 * expected).backward()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    for ours, theirs in zip(own, slow, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-5)


def test_no_tokens_and_the_same_model_teach_nothing() -> None:
    empty = soft_target_loss(*(torch.zeros(size) for size in ((0, 4), (9, 4), (9,), (0, 4), (9, 4), (9,))), 2.0)
    assert float(empty) == 0.0
    same = [torch.randn(size, generator=torch.Generator().manual_seed(2)) for size in ((5, 4), (9, 4), (9,))]
    assert float(soft_target_loss(*same, *same, 2.0)) == pytest.approx(0.0, abs=1e-5)
    assert float(cosine_loss(same[0], same[0])) == pytest.approx(0.0, abs=1e-5)


def test_cosine_loss_equals_torch_s_own() -> None:
    first, second = (torch.randn((7, 5), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    expected = nn.CosineEmbeddingLoss(reduction="sum")(first, second, torch.ones(7))
    torch.testing.assert_close(cosine_loss(first, second), expected)
