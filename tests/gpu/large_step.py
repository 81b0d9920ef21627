"""Print the peak memory and the matrix products of a step of BERT-large on rows of up to 512 tokens.

python -m tests.gpu.large_step ROWS ATTENTION_DROPOUT
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile

import torch
from tests.benchmarks.length_mix import make_batch, our_loss

from training.bert.heads import BertForPreTraining
from training.engine.processes import start_processes
from training.engine.training_engine import EngineSettings, TrainingEngine
from training.optimizers.building import build_optimizer
from training.settings.model import SHAPES, ModelConfig
from training.settings.pretraining import PretrainingConfig

VOCAB_SIZE, MAX_SEQ_LENGTH = 30_522, 512
_STAND_IN = ctypes.CDLL(None)


def main() -> None:
    rows, attention_dropout = int(sys.argv[1]), float(sys.argv[2])
    processes = start_processes()
    config = ModelConfig(**{**SHAPES["large"], "attention_probs_dropout_prob": attention_dropout})
    with torch.device("cuda"):
        model = BertForPreTraining(config, VOCAB_SIZE)
    engine = TrainingEngine(
        model, build_optimizer(model, PretrainingConfig()), EngineSettings(2, "bf16", 1.0, rows, 1), processes
    )
    engine.train()
    batch = make_batch(0, rows, MAX_SEQ_LENGTH, VOCAB_SIZE, processes.device, True, full_rows=False)
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        _STAND_IN.stand_in_reset()
        engine.backward(our_loss(engine, batch), is_last=True)
        engine.step(1e-4)
    with tempfile.NamedTemporaryFile("r") as listed:
        _STAND_IN.stand_in_write(listed.name.encode())
        names = [line.rstrip("\n").split("\t")[2] for line in listed]
    products = [name for name in names if name.startswith("product")]
    print(json.dumps({"peak_gib": torch.cuda.max_memory_allocated() / 2**30, "products": products}))


if __name__ == "__main__":
    main()
