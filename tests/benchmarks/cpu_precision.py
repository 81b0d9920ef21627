"""A pre-training step on a CPU in bf16 over the same step in fp32: where `precision = "auto"` should take it.

Same weights, same rows (length_mix.py), dropout off, one thread, CPU time, through DeepSpeed's engine (ZeRO-0, fp32
copies of the weights) with BERT's Adam. Losses are compared. `products` is the gain of a layer's product, by which
`auto` decides.

    make bench NAME=cpu_precision
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from length_mix import Batch, make_batch, our_loss
from tests.support.measuring import cpu_seconds, report

from training.bert.heads import BertForPreTraining
from training.bert.modeling import initialize_weights
from training.engine.precision import bf16_gain
from training.engine.processes import Processes, start_processes, stop_processes
from training.engine.training_engine import EngineSettings, TrainingEngine
from training.kernels.processor import has_bf16_products
from training.optimizers.adam import BertAdam
from training.settings.model import ModelConfig

RUNS = 7
WARM_STEPS = 4
"""Until then the process still asks for memory, which it keeps."""
SEQUENCES, LENGTH, VOCAB_SIZE = 8, 512, 30_522
LAYERS = 4
HIDDEN_SIZES = (256, 512)
LARGEST_LOSS_DIFFERENCE = 0.05
RATE = 1e-5


def engine_of(hidden_size: int, precision: str, processes: Processes) -> TrainingEngine:
    config = ModelConfig(
        hidden_size=hidden_size,
        num_hidden_layers=LAYERS,
        num_attention_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForPreTraining(config, VOCAB_SIZE)
    initialize_weights(model, config.initializer_range, seed=1)
    optimizer = BertAdam(model.parameters(), lr=RATE)
    return TrainingEngine(model, optimizer, EngineSettings(0, precision, 1.0, SEQUENCES, 1), processes)


def train(engine: TrainingEngine, batch: Batch) -> float:
    loss = our_loss(engine, batch)
    engine.backward(loss, is_last=True)
    engine.step(RATE)
    return float(loss.detach())


def gain_of(hidden_size: int, processes: Processes) -> tuple[float, bool]:
    """How many times as fast as in fp32 a step is, and whether the losses before it agree."""
    batch = make_batch(0, SEQUENCES, LENGTH, VOCAB_SIZE)
    engines = {precision: engine_of(hidden_size, precision, processes) for precision in ("fp32", "bf16")}
    losses = [train(engine, batch) for engine in engines.values()]
    for engine in engines.values():
        for _ in range(WARM_STEPS):
            train(engine, batch)
    steps: dict[str, Callable[[], float]] = {name: partial(train, engine, batch) for name, engine in engines.items()}
    rounds = [{name: cpu_seconds(step) for name, step in steps.items()} for _ in range(RUNS)]
    for engine in engines.values():
        engine.close()
    rates = {name: batch.num_tokens / statistics.median(one[name] for one in rounds) for name in steps}
    print(f"hidden size {hidden_size}: {rates} tokens a CPU second, losses {losses}", file=sys.stderr)
    gain = statistics.median(one["fp32"] / one["bf16"] for one in rounds)
    return gain, abs(losses[0] - losses[1]) < LARGEST_LOSS_DIFFERENCE


def main() -> None:
    processes = start_processes()
    torch.set_num_threads(1)
    gains = {hidden_size: gain_of(hidden_size, processes) for hidden_size in HIDDEN_SIZES}
    products = {hidden_size: round(bf16_gain(hidden_size), 2) for hidden_size in HIDDEN_SIZES}
    stop_processes()
    report(
        "cpu-precision",
        gains[HIDDEN_SIZES[0]][0],
        f"times as fast in bf16, hidden size {HIDDEN_SIZES[0]}",
        peer="the same step in fp32",
        peer_value=1.0,
        ratio=gains[HIDDEN_SIZES[0]][0],
        by_hidden_size={hidden_size: round(gain, 3) for hidden_size, (gain, _) in gains.items()},
        products=products,
        identical=all(agree for _, agree in gains.values()),
        runs=RUNS,
        has_bf16_products=has_bf16_products(),
        torch=torch.__version__,
    )


if __name__ == "__main__":
    main()
