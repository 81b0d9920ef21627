"""Held-out losses and accuracies of a pre-training model."""

from __future__ import annotations

import math

import torch

from training.bert.heads import PreTrainingOutput
from training.bert.losses import MLM_DENOMINATOR_EPS
from training.data.arrow_examples import ArrowExamples
from training.data.batches import MicroBatch
from training.data.dynamic_masking import DynamicMasking
from training.data.step_reader import heldout_batches
from training.engine.training_engine import TrainingEngine


def metrics_from_sums(sums: torch.Tensor) -> dict[str, float]:
    """Means from sums [6] float64: MLM loss, MLM correct, masked tokens, NSP loss, NSP correct, labelled pairs.

    Without labelled pairs there is no next-sentence task, and nothing is told about it.
    """
    mlm_loss_sum, mlm_correct, masked, nsp_loss_sum, nsp_correct, pairs = sums.tolist()
    mlm_loss = mlm_loss_sum / (masked + MLM_DENOMINATOR_EPS)
    metrics = {
        "loss": mlm_loss,
        "mlm_loss": mlm_loss,
        "mlm_accuracy": mlm_correct / max(masked, 1.0),
        "mlm_perplexity": math.exp(min(mlm_loss, 700.0)),
    }
    if pairs:
        nsp_loss = nsp_loss_sum / pairs
        metrics |= {"loss": mlm_loss + nsp_loss, "nsp_loss": nsp_loss, "nsp_accuracy": nsp_correct / pairs}
    return metrics


def accuracies_in_words(metrics: dict[str, float]) -> str:
    """`MLM accuracy 0.1234, NSP accuracy 0.5678`, or the first alone where there is no second task."""
    line = f"MLM accuracy {metrics['mlm_accuracy']:.4f}"
    return line + (f", NSP accuracy {metrics['nsp_accuracy']:.4f}" if "nsp_accuracy" in metrics else "")


def evaluate(
    engine: TrainingEngine,
    examples: ArrowExamples,
    max_examples: int,
    batch_size: int,
    with_plan: bool,
    masking: DynamicMasking | None = None,
) -> dict[str, float]:
    """Evaluate on the first `max_examples` held-out rows, shared among the ranks; every rank gets the same result.

    `masking`: how rows are masked at reading, the same each time; None takes their own masks.
    """
    processes = engine.processes
    sums = torch.zeros(6, dtype=torch.float64, device=processes.device)
    engine.eval()
    with torch.no_grad():
        batches = heldout_batches(
            examples,
            max_examples,
            batch_size,
            processes.rank,
            processes.world_size,
            processes.device,
            with_plan,
            masking,
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
    sums = torch.zeros(6, dtype=torch.float64, device=output.mlm_loss_sum.device)
    sums[0], sums[1], sums[2] = output.mlm_loss_sum.detach(), output.mlm_correct, len(batch.masked_lm_ids_M)
    if output.nsp_loss_sum is not None and output.nsp_correct is not None:
        sums[3], sums[4] = output.nsp_loss_sum.detach(), output.nsp_correct
        sums[5] = batch.sequences.num_sequences
    return sums, output
