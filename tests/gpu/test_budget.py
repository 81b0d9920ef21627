"""What one step of BERT-large may ask of a GPU: launches, waits, copies, memory, plans."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from tests.gpu.conftest import StandIn, Trace
from tests.support.training.synthetic_run import Workspace

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

MOST_LAUNCHES, MOST_WAITS = 1_500, 4
EXECUTION_PLAN = "cudnn descriptor 5"
SHAPE = tuple(
    f"model.{name}={value}"
    for name, value in {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }.items()
)
STEPS = ("pretraining.phases.0.steps=5", "pretraining.phases.1.steps=1", "pretraining.checkpoint_every_steps=1000")


@pytest.fixture(scope="module", params=[1, 2])
def step_of_bert_large(
    request: pytest.FixtureRequest, stand_in: StandIn, make_workspace: Callable[[str], Workspace]
) -> Trace:
    """A step of the training loop; dropout on, one micro-batch, bf16."""
    workspace = make_workspace("gpu-large")
    stage = f"pretraining.zero_stage={request.param}"
    _, traces = stand_in.training(workspace, "training.pretrain", *SHAPE, *STEPS, stage, step=4)
    assert len(traces) == 1
    return traces[0]


def test_launches_of_a_step(step_of_bert_large: Trace) -> None:
    assert 24 * 20 < step_of_bert_large.launches <= MOST_LAUNCHES


def test_waits_of_a_step(step_of_bert_large: Trace) -> None:
    trace = step_of_bert_large
    assert 0 < trace.count("wait") <= MOST_WAITS, trace.waits
    assert not trace.count("wait device")


def test_copies_of_a_step_are_pinned(step_of_bert_large: Trace) -> None:
    trace = step_of_bert_large
    assert trace.count("copy to device, pinned")
    assert not trace.count("copy to device, pageable", "copy to host, pageable")


def test_no_plans_are_built(step_of_bert_large: Trace) -> None:
    assert not step_of_bert_large.count(EXECUTION_PLAN)


def test_cudnn_would_build_plans_for_each_number_of_tokens(stand_in: StandIn) -> None:
    """What `use_flash_kernels` prevents, and that the stand-in would show it."""
    plans = json.loads(stand_in.python("-m", "tests.gpu.attention_plans").splitlines()[-1])
    assert plans["cudnn"] == [2, 2, 2]
    assert plans["flash"] == [0, 0, 0]


@pytest.mark.parametrize("attention_dropout", [0.0, 0.1])
def test_compiled_layers_are_one_graph(stand_in: StandIn, attention_dropout: float) -> None:
    """Attention is in it: between the products nothing is launched that Inductor has not made."""
    output = stand_in.python("-m", "tests.gpu.compiled_layer", str(attention_dropout))
    found = json.loads(output.splitlines()[-1])
    assert found["graphs"] == 2  # with all tokens, and with those that are read
    assert found["graph_breaks"] == []
    assert found["compiled_again"] == 0
    assert any("flash_fwd" in name for name in found["kernels"])
    assert not [name for name in found["kernels"] if "at6native" in name and "Random" not in name]


@pytest.mark.parametrize(("rows", "attention_dropout", "most_gib"), [(64, 0.0, 18.7), (96, 0.1, 26.0)])
def test_peak_memory_of_bert_large(stand_in: StandIn, rows: int, attention_dropout: float, most_gib: float) -> None:
    """Real row lengths up to 512, vocabulary of 30,522, ZeRO-2, Adam; the torch allocator's own peak."""
    output = stand_in.python("-m", "tests.gpu.large_step", str(rows), str(attention_dropout))
    measured = json.loads(output.splitlines()[-1])
    assert 8.0 < measured["peak_gib"] <= most_gib
    # All three products of the output layer have aligned rows.
    products = [name for name in measured["products"] if "30522" in name or "30528" in name]
    assert products
    assert not any("lda 30522" in name or "ldb 30522" in name for name in products), products


def test_the_stand_in_has_no_more_memory_than_a_card(stand_in: StandIn) -> None:
    program = (
        "import torch\n"
        "torch.empty(78 << 30, dtype=torch.uint8, device='cuda')\n"
        "try:\n    torch.empty(80 << 30, dtype=torch.uint8, device='cuda')\n"
        "except torch.OutOfMemoryError:\n    print('refused')\n"
    )
    assert stand_in.python("-c", program).splitlines()[-1] == "refused"
