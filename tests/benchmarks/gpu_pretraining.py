"""Pre-training steps of BERT-base and -large on one GPU in bf16: ours in several settings, and compiled `transformers`.

    PYTHONPATH=. python tests/benchmarks/gpu_pretraining.py --cases large-512 base-128 --output result.json
    PYTHONPATH=. python tests/benchmarks/gpu_pretraining.py --device cpu --cases tiny-64   # the same path on a CPU

Needs torch >= 2.11, numpy, pydantic and transformers; the DeepSpeed setting is skipped with a message if DeepSpeed is
not installed. Every setting trains on the same rows with the same weights: forward, backward, clipping and a fused
AdamW on fp32 master weights. FLOPs are counted for real tokens (training/pretraining/throughput.py), so the shares of
the peak compare padded with packed. A figure is the median of several rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from length_mix import Batch, make_batch, our_loss, peer_loss

from training.bert.heads import BertForPreTraining
from training.bert.modeling import compile_layers, initialize_weights
from training.bert.sizes import step_flops
from training.kernels.packed_attention import flash_attention_applies
from training.pretraining.throughput import measured_peak_flops
from training.settings.model import SHAPES, ModelConfig

VOCAB_SIZE = 30_522
LEARNING_RATE, MAX_GRAD_NORM = 1e-5, 1.0
WARMUP_STEPS, BATCHES = 3, 4

Step = Callable[[Batch], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """What is trained: `full_rows` leaves no padding; `sequences` is the batch on a GPU."""

    size: str
    max_seq_length: int
    sequences: int
    full_rows: bool


CASES = {
    "large-512": Case("large", 512, 96, full_rows=False),
    "large-128": Case("large", 128, 256, full_rows=True),
    "base-512": Case("base", 512, 128, full_rows=False),
    "base-128": Case("base", 128, 512, full_rows=True),
    "tiny-64": Case("tiny", 64, 8, full_rows=False),
}


class MasterWeights:
    """bf16 parameters with fp32 copies that a fused AdamW updates, as DeepSpeed's bf16 engine keeps them."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._low = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._high = [parameter.detach().float().clone() for parameter in self._low]
        on_gpu = self._low[0].device.type == "cuda"
        self._optimizer = torch.optim.AdamW(self._high, lr=LEARNING_RATE, weight_decay=0.01, fused=on_gpu)

    def step(self) -> None:
        for high, low in zip(self._high, self._low, strict=True):
            high.grad = torch.empty_like(high)
            assert low.grad is not None
        torch._foreach_copy_([high.grad for high in self._high], [low.grad for low in self._low])
        torch.nn.utils.clip_grad_norm_(self._high, MAX_GRAD_NORM, foreach=True)
        self._optimizer.step()
        torch._foreach_copy_([low.data for low in self._low], self._high)
        for low in self._low:
            low.grad = None


def our_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> BertForPreTraining:
    model = BertForPreTraining(config, VOCAB_SIZE)
    initialize_weights(model, config.initializer_range, seed=1)
    return model.to(device=device, dtype=dtype).train()


def bare_step(config: ModelConfig, device: torch.device, dtype: torch.dtype, compiled: bool) -> Step:
    model = our_model(config, device, dtype)
    if compiled:
        compile_layers(model.bert)
    master = MasterWeights(model)

    def step(batch: Batch) -> torch.Tensor:
        loss = our_loss(model, batch)
        loss.backward()
        master.step()
        return loss.detach()

    return step


def engine_step(config: ModelConfig, device: torch.device, dtype: torch.dtype, batch_size: int) -> Step:
    """The same through DeepSpeed, one process, ZeRO-1; raises ImportError where DeepSpeed is not installed."""
    import deepspeed  # noqa: F401 - imported here, so that its absence is reported before anything is built

    from training.engine.processes import start_processes
    from training.engine.training_engine import EngineSettings, TrainingEngine

    processes = start_processes()
    model = our_model(config, device, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=device.type == "cuda")
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    engine = TrainingEngine(model, optimizer, EngineSettings(1, precision, MAX_GRAD_NORM, batch_size, 1), processes)

    def step(batch: Batch) -> torch.Tensor:
        loss = our_loss(engine, batch)
        engine.backward(loss, is_last=True)
        engine.step(LEARNING_RATE)
        return loss.detach()

    return step


def peer_step(config: ModelConfig, device: torch.device, dtype: torch.dtype, compiled: bool) -> Step:
    import transformers

    from training.bert.huggingface import huggingface_config

    settings = huggingface_config(config, VOCAB_SIZE, "BertForPreTraining")
    model = transformers.BertForPreTraining(transformers.BertConfig(**settings, attn_implementation="sdpa"))
    reference = BertForPreTraining(config, VOCAB_SIZE)
    initialize_weights(reference, config.initializer_range, seed=1)
    model.load_state_dict(reference.state_dict(), strict=False)
    model.tie_weights()
    model = model.to(device=device, dtype=dtype).train()
    master, call = MasterWeights(model), torch.compile(model) if compiled else model

    def step(batch: Batch) -> torch.Tensor:
        loss = peer_loss(call, batch)
        loss.backward()
        master.step()
        return loss.detach()

    return step


def settings_of(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, batch_size: int
) -> dict[str, Callable[[], Step]]:
    """Name of each setting -> what builds its step; `modern` has no attention dropout, `faithful` has BERT's 0.1."""
    modern = config.model_copy(update={"attention_probs_dropout_prob": 0.0})
    return {
        "ours": lambda: bare_step(modern, device, dtype, compiled=False),
        "ours, compiled": lambda: bare_step(modern, device, dtype, compiled=True),
        "ours, faithful, compiled": lambda: bare_step(config, device, dtype, compiled=True),
        "ours, DeepSpeed": lambda: engine_step(modern, device, dtype, batch_size),
        "transformers": lambda: peer_step(modern, device, dtype, compiled=False),
        "transformers, compiled": lambda: peer_step(modern, device, dtype, compiled=True),
    }


def measure(step: Step, batches: list[Batch], device: torch.device, steps: int) -> float:
    """Seconds of one step, by the wall clock, the device's queue emptied before and after."""
    _synchronize(device)
    started = time.perf_counter()
    for number in range(steps):
        step(batches[number % len(batches)])
    _synchronize(device)
    return (time.perf_counter() - started) / steps


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_case(
    name: str, arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype, peak: float
) -> dict[str, Any]:
    case = CASES[name]
    config = ModelConfig(**SHAPES[case.size])
    sequences = arguments.sequences or case.sequences
    flash = flash_attention_applies(device.type, dtype, config.head_size)
    batches = [
        make_batch(seed, sequences, case.max_seq_length, VOCAB_SIZE, device, True, case.full_rows)
        for seed in range(BATCHES)
    ]
    flops = statistics.mean(
        step_flops(config, VOCAB_SIZE, batch.num_tokens, batch.squared_tokens, len(batch.masked_lm_ids_M))
        for batch in batches
    )
    results: dict[str, Any] = {}
    for setting, build in settings_of(config, device, dtype, sequences).items():
        if arguments.settings and setting not in arguments.settings:
            continue
        try:
            step = build()
        except ImportError as error:
            results[setting] = {"left_out": str(error)}
            continue
        torch.manual_seed(0)
        first_loss = float(step(batches[0]))
        for number in range(WARMUP_STEPS * BATCHES):
            step(batches[number % BATCHES])
        seconds = statistics.median(measure(step, batches, device, arguments.steps) for _ in range(arguments.rounds))
        results[setting] = {
            "sequences_per_second": sequences / seconds,
            "real_tokens_per_second": statistics.mean(batch.num_tokens for batch in batches) / seconds,
            "model_tflops_per_second": flops / seconds / 1e12,
            "share_of_measured_peak": flops / seconds / peak,
            "first_loss": first_loss,
        }
        if device.type == "cuda":
            results[setting]["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        print(f"{name}: {setting}: {json.dumps(results[setting])}", file=sys.stderr, flush=True)
        del step
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    rates = {setting: facts["sequences_per_second"] for setting, facts in results.items() if "first_loss" in facts}
    ours = max((rate for setting, rate in rates.items() if setting.startswith("ours")), default=None)
    peer = max((rate for setting, rate in rates.items() if setting.startswith("transformers")), default=None)
    return {
        "sequences": sequences,
        "max_seq_length": case.max_seq_length,
        "mean_tokens_per_sequence": statistics.mean(batch.num_tokens for batch in batches) / sequences,
        "variable_length_kernel": flash,
        "settings": results,
        "best_ours_over_best_transformers": ours / peer if ours and peer else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["large-512", "base-128"])
    parser.add_argument("--settings", nargs="+", help="only these, by name")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sequences", type=int, help="sequences of a batch, instead of each case's own")
    parser.add_argument("--steps", type=int, default=20, help="steps of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", help="file for the JSON that is also printed last")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    peak = measured_peak_flops(device, dtype)
    result = {
        "name": "gpu-pretraining",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "dtype": str(dtype),
        "measured_peak_tflops": peak / 1e12,
        "cases": {name: run_case(name, arguments, device, dtype, peak) for name in arguments.cases},
    }
    text = json.dumps(result)
    if arguments.output:
        Path(arguments.output).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
