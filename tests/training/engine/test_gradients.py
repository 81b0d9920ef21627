"""Sums of micro-batches in fp32 for 16-bit weights, and steps that one rank's gradients forbid."""

from __future__ import annotations

import json
import sys

import pytest
from tests.support.training.engine_steps import EXACT
from tests.support.training.finetune_ranks import outputs_of_ranks

from training.engine.training_engine import EngineSettings

pytestmark = pytest.mark.timeout(300)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero_stage", "more"), [("0", []), ("1", []), ("2", []), ("3", []), *((stage, ["offload"]) for stage in "123")]
)
def test_micro_batches_add_up_in_fp32_and_no_rank_takes_a_poisoned_step(zero_stage: str, more: list[str]) -> None:
    command = [sys.executable, "-m", "tests.support.training.engine_steps", zero_stage, *more]
    for output in outputs_of_ranks(command, ranks=2):
        found = json.loads(output.splitlines()[-1])
        # The sum in bfloat16 is 1.0.
        assert found["norms"] == pytest.approx([EXACT, EXACT], rel=1e-3)
        assert found["skipped"] == {"was_updated": False, "is_finite": False, "is_changed": False}


@pytest.mark.parametrize(
    ("zero_stage", "precision", "num_micro", "dtype"),
    [(1, "bf16", 4, None), (2, "bf16", 4, "fp32"), (3, "fp16", 2, "fp32"), (2, "bf16", 1, None), (2, "fp32", 4, None)],
)
def test_only_what_is_rounded_needs_sums(zero_stage: int, precision: str, num_micro: int, dtype: str | None) -> None:
    settings = EngineSettings(zero_stage, precision, 1.0, 8, num_micro)
    assert settings.deepspeed_json()["data_types"] == {"grad_accum_dtype": dtype}
