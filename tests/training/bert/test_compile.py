"""The compiled layers against the eager ones, and that a new length compiles nothing again."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from training.bert.heads import BertForPreTraining
from training.bert.modeling import compile_layers, initialize_weights
from training.bert.packing import pack
from training.data.batches import MicroBatch
from training.pretraining.bert_objective import pretraining_loss
from training.settings.model import ModelConfig

pytestmark = pytest.mark.timeout(300)

VOCAB_SIZE = 61
CONFIG = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def built(hidden_dropout_prob: float) -> tuple[BertForPreTraining, BertForPreTraining]:
    """The same model eager and compiled."""
    config = ModelConfig.model_validate(
        {**CONFIG, "hidden_dropout_prob": hidden_dropout_prob, "attention_probs_dropout_prob": hidden_dropout_prob}
    )
    eager = BertForPreTraining(config, VOCAB_SIZE)
    initialize_weights(eager, 0.1, 1)
    compiled = copy.deepcopy(eager)
    compile_layers(compiled.bert)
    return eager, compiled


def batch(lengths: list[int]) -> MicroBatch:
    generator = np.random.default_rng(len(lengths))
    sizes = np.array(lengths)
    tokens = generator.integers(1, VOCAB_SIZE, int(sizes.sum()))
    return MicroBatch(
        sequences=pack(tokens, sizes, sizes // 2),
        masked_lm_positions_M=torch.from_numpy(np.cumsum(sizes) - 2),
        masked_lm_ids_M=torch.from_numpy(generator.integers(1, VOCAB_SIZE, len(lengths))),
        next_sentence_label_B=torch.from_numpy(generator.integers(0, 2, len(lengths))),
    )


def loss_and_gradients(model: BertForPreTraining, rows: MicroBatch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    output = model(rows.sequences, rows.masked_lm_positions_M, rows.masked_lm_ids_M, rows.next_sentence_label_B)
    loss = pretraining_loss(output.mlm_loss_sum, output.nsp_loss_sum, len(rows.masked_lm_ids_M), 1)
    torch.autograd.backward(loss)
    gradients = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    return {"loss": loss.detach(), **gradients}


def require_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=TOLERANCE, rtol=TOLERANCE, msg=name)


@pytest.mark.slow
def test_gradients_equal_the_eager_ones_and_other_lengths_compile_nothing() -> None:
    eager, compiled = built(0.0)
    for lengths in ([12, 12, 7], [30, 4]):
        require_equal(loss_and_gradients(compiled, batch(lengths)), loss_and_gradients(eager, batch(lengths)))
    assert len(loss_and_gradients(compiled, batch([5]))) == 1 + sum(1 for _ in compiled.parameters())
    with torch.compiler.set_stance("fail_on_recompile"):
        for lengths in ([9], [40, 39, 38, 3], [17, 16]):
            require_equal(loss_and_gradients(compiled, batch(lengths)), loss_and_gradients(eager, batch(lengths)))
    # For all four layers together: one where attention joins several bins, one where there is a single one.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
def test_dropout_and_recomputed_activations_go_with_it() -> None:
    _, compiled = built(0.1)
    found = []
    for recompute in (False, True):
        compiled.bert.encoder.activation_checkpointing = recompute
        torch.manual_seed(1)
        found.append(loss_and_gradients(compiled, batch([12, 12, 7])))
    require_equal(found[1], found[0])
    torch.manual_seed(2)
    assert loss_and_gradients(compiled, batch([12, 12, 7]))["loss"] != found[0]["loss"]
