"""One pre-training step on a CPU: packed BERT against `transformers` with padding, eager and compiled.

Same weights, same rows (a natural mix of lengths, length_mix.py), dropout off, forward, backward and AdamW on one
thread, CPU time. Rates are in real tokens, so a peer's padding counts for nothing. Losses are compared. Then the same
step through the DeepSpeed engine against our bare loop.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from length_mix import Batch, make_batch, our_loss, peer_loss
from tests.support.measuring import cpu_seconds, report

from training.bert.heads import BertForPreTraining
from training.bert.huggingface import huggingface_config
from training.bert.modeling import initialize_weights
from training.engine.processes import start_processes, stop_processes
from training.engine.training_engine import EngineSettings, TrainingEngine
from training.settings.model import ModelConfig

RUNS, STEPS = 5, 2
SEQUENCES, LENGTH, VOCAB_SIZE = 8, 512, 30_522
MODEL = ModelConfig(
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=1024,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def stepper(
    model: torch.nn.Module, loss_of: Callable[..., torch.Tensor], call: Callable[..., Any]
) -> Callable[[Batch], float]:
    """A function that trains one step and returns the loss before it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(batch: Batch) -> float:
        loss = loss_of(call, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def tokens_per_second(step: Callable[[Batch], float], batches: list[Batch]) -> float:
    seconds = cpu_seconds(lambda: [step(batch) for batch in batches])
    return sum(batch.num_tokens for batch in batches) / seconds


def build() -> tuple[BertForPreTraining, torch.nn.Module]:
    ours = BertForPreTraining(MODEL, VOCAB_SIZE)
    initialize_weights(ours, MODEL.initializer_range, seed=1)
    settings = huggingface_config(MODEL, VOCAB_SIZE, "BertForPreTraining")
    peer = transformers.BertForPreTraining(transformers.BertConfig(**settings))
    missing = peer.load_state_dict(ours.state_dict(), strict=False).missing_keys
    assert all("decoder" in name or "position_ids" in name for name in missing), missing
    peer.tie_weights()
    return ours, peer


def main() -> None:
    torch.set_num_threads(1)
    batches = [make_batch(seed, SEQUENCES, LENGTH, VOCAB_SIZE) for seed in range(STEPS)]
    ours, peer = build()
    compiled = torch.compile(peer)
    with torch.no_grad():
        losses = [(float(our_loss(ours, batch)), float(peer_loss(peer, batch))) for batch in batches]
    identical = all(abs(one - other) < 1e-4 for one, other in losses)
    steps = {
        "ours": stepper(ours, our_loss, ours),
        "eager": stepper(peer, peer_loss, peer),
        "compiled": stepper(peer, peer_loss, compiled),
    }
    started = time.monotonic()
    for step in steps.values():
        step(batches[0])
    print(f"compiled and warm after {time.monotonic() - started:.0f} s", file=sys.stderr)
    rounds = [{name: tokens_per_second(step, batches) for name, step in steps.items()} for _ in range(RUNS)]
    medians = {name: statistics.median(rates[name] for rates in rounds) for name in steps}
    engine_ratio = measure_engine(batches)
    report(
        "training-step",
        medians["ours"],
        "tokens per CPU second",
        peer=f"transformers {transformers.__version__}, the faster of eager and compiled",
        peer_value=max(medians["eager"], medians["compiled"]),
        ratio=statistics.median(rates["ours"] / max(rates["eager"], rates["compiled"]) for rates in rounds),
        ratio_to_eager=statistics.median(rates["ours"] / rates["eager"] for rates in rounds),
        ratio_to_compiled=statistics.median(rates["ours"] / rates["compiled"] for rates in rounds),
        engine_time_over_bare_loop=engine_ratio,
        identical=identical,
        runs=RUNS,
        real_tokens_share=sum(batch.num_tokens for batch in batches) / (STEPS * SEQUENCES * LENGTH),
        torch=torch.__version__,
    )


def measure_engine(batches: list[Batch]) -> float:
    """CPU time of a step through the DeepSpeed engine (one process, ZeRO-0) over that of the bare loop."""
    bare_model, _ = build()
    bare = stepper(bare_model, our_loss, bare_model)
    processes = start_processes()
    torch.set_num_threads(1)
    model, _ = build()
    engine = TrainingEngine(
        model, torch.optim.AdamW(model.parameters(), lr=1e-5), EngineSettings(0, "fp32", 0.0, SEQUENCES, 1), processes
    )

    def step(batch: Batch) -> float:
        loss = our_loss(engine, batch)
        engine.backward(loss, is_last=True)
        engine.step(1e-5)
        return float(loss.detach())

    step(batches[0])
    bare(batches[0])
    ratios = [tokens_per_second(bare, batches) / tokens_per_second(step, batches) for _ in range(RUNS)]
    engine.close()
    stop_processes()
    return statistics.median(ratios)


if __name__ == "__main__":
    main()
