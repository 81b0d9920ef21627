"""Held-out losses and accuracies of a pre-training model."""

from __future__ import annotations

import math

import torch

from training.data import ArrowExamples, MicroBatch, heldout_batches
from training.engine import TrainingEngine
from training.heads import PreTrainingOutput
from training.losses import MLM_DENOMINATOR_EPS


def metrics_from_sums(sums: torch.Tensor) -> dict[str, float]:
    """Means from sums [6] float64: MLM loss, MLM correct, masked tokens, NSP loss, NSP correct, sequences."""
    mlm_loss_sum, mlm_correct, masked, nsp_loss_sum, nsp_correct, sequences = sums.tolist()
    mlm_loss = mlm_loss_sum / (masked + MLM_DENOMINATOR_EPS)
    nsp_loss = nsp_loss_sum / max(sequences, 1.0)
    return {
        "loss": mlm_loss + nsp_loss,
        "mlm_loss": mlm_loss,
        "mlm_accuracy": mlm_correct / max(masked, 1.0),
        "mlm_perplexity": math.exp(min(mlm_loss, 700.0)),
        "nsp_loss": nsp_loss,
        "nsp_accuracy": nsp_correct / max(sequences, 1.0),
    }


def evaluate(
    engine: TrainingEngine, examples: ArrowExamples, max_examples: int, batch_size: int, with_plan: bool
) -> dict[str, float]:
    """Evaluate on the first `max_examples` held-out rows, shared among the ranks; every rank gets the same result."""
    processes = engine.processes
    sums = torch.zeros(6, dtype=torch.float64, device=processes.device)
    engine.eval()
    with torch.no_grad():
        batches = heldout_batches(
            examples, max_examples, batch_size, processes.rank, processes.world_size, processes.device, with_plan
        )
        for batch in batches:
            sums += batch_sums(engine, batch.to(processes.device))[0]
    engine.train()
    return metrics_from_sums(processes.sum(sums))


def batch_sums(engine: TrainingEngine, batch: MicroBatch) -> tuple[torch.Tensor, PreTrainingOutput]:
    """Forward pass of a micro-batch; its sums in the order of `metrics_from_sums`, and the output itself."""
    output: PreTrainingOutput = engine(
        batch.sequences, batch.masked_lm_positions_M, batch.masked_lm_ids_M, batch.next_sentence_label_B
    )
    masked, sequences = len(batch.masked_lm_ids_M), batch.sequences.num_sequences
    sums = torch.stack(
        [
            output.mlm_loss_sum.detach().double(),
            output.mlm_correct.double(),
            torch.tensor(float(masked), dtype=torch.float64, device=output.mlm_loss_sum.device),
            output.nsp_loss_sum.detach().double(),
            output.nsp_correct.double(),
            torch.tensor(float(sequences), dtype=torch.float64, device=output.mlm_loss_sum.device),
        ]
    )
    return sums, output
