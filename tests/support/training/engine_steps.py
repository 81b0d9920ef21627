"""As a script: two steps of the engine in bf16, one of 65 micro-batches and one that is not finite on the last rank.

    python -m tests.support.training.engine_steps ZERO_STAGE [offload]

Each micro-batch's gradient is its input: 1, then 64 times 1/512, which a sum in bfloat16 does not see. Prints a line of
JSON: the norm of the first step by parameter, and what the second one did.
"""

from __future__ import annotations

import json
import math
import sys

import torch
from torch import nn

from training.engine.processes import start_processes, stop_processes
from training.engine.training_engine import EngineSettings, TrainingEngine

NUM_PARAMETERS = 7
NUM_MICRO_BATCHES = 65
EXACT = 1 + 64 / 512


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(NUM_PARAMETERS, dtype=torch.bfloat16))
        self.other = nn.Parameter(torch.zeros(5, 3, dtype=torch.bfloat16))

    def forward(self, factor: torch.Tensor) -> torch.Tensor:
        return (self.weight * factor).sum() + 0 * self.other.sum()


def main(zero_stage: int, offload_optimizer: bool) -> None:
    processes = start_processes()
    model = Product()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    settings = EngineSettings(zero_stage, "bf16", 0.0, 1, NUM_MICRO_BATCHES, offload_optimizer)
    engine = TrainingEngine(model, optimizer, settings, processes)

    def step(factors: list[float]) -> float:
        for number, factor in enumerate(factors, start=1):
            # A part of the global loss: that of all ranks together is the sum.
            loss = engine(torch.tensor(factor / processes.world_size, dtype=torch.bfloat16))
            engine.backward(loss, is_last=number == len(factors))
        return float(engine.step(0.5))

    norm = step([1.0] + [1 / 512] * (NUM_MICRO_BATCHES - 1))
    assert engine.was_updated
    weights = engine.full_precision_state()
    poisoned = math.nan if processes.rank == processes.world_size - 1 else 1.0
    skipped_norm = step([1.0, poisoned, 1.0])
    kept = engine.full_precision_state()
    skipped = {
        "was_updated": engine.was_updated,
        "is_finite": math.isfinite(skipped_norm),
        "is_changed": any(not torch.equal(weights[name], kept[name]) for name in weights),
    }
    # The step after it is not affected.
    after = step([1.0] + [1 / 512] * (NUM_MICRO_BATCHES - 1))
    print(
        json.dumps({"norms": [value / NUM_PARAMETERS**0.5 for value in (norm, after)], "skipped": skipped}), flush=True
    )
    engine.close()
    stop_processes()


if __name__ == "__main__":
    main(int(sys.argv[1]), "offload" in sys.argv)
