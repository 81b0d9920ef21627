"""Print what compiled layers launch on the stand-in, and into how many graphs they were cut."""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile

import numpy as np
import torch
from torch import nn
from torch._dynamo.utils import counters

from training.bert.modeling import BertLayer, compile_layers, initialize_weights
from training.bert.packing import pack
from training.engine.devices import use_flash_kernels
from training.settings.model import ModelConfig

_STAND_IN = ctypes.CDLL(None)
NUM_LAYERS = 10
"""More than the graphs that torch makes of one function before it gives up (`recompile_limit`, 8)."""


def forward_and_backward(layers: nn.ModuleList, lengths: list[int], read_one: bool) -> None:
    sizes = np.array(lengths)
    sequences = pack(np.zeros(sizes.sum(), dtype=np.int64), sizes, sizes, with_plan=False).to(torch.device("cuda"))
    hidden = torch.zeros(int(sizes.sum()), 256, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    tokens = sequences.first_tokens_B if read_one else None
    result = hidden
    for layer in layers[:-1]:
        result = layer(result, sequences)
    result = layers[-1](result, sequences, tokens)
    result.backward(torch.empty_like(result))


def main() -> None:
    use_flash_kernels()
    dropout = float(sys.argv[1])
    config = ModelConfig(size="mini", attention_probs_dropout_prob=dropout, hidden_dropout_prob=dropout)
    layers = nn.ModuleList([BertLayer(config) for _ in range(NUM_LAYERS)])
    initialize_weights(layers, config.initializer_range, 1)
    layers.to(device="cuda", dtype=torch.bfloat16)
    compile_layers(layers)
    for read_one in (False, True):
        forward_and_backward(layers, [30, 20], read_one)
    graphs = counters["stats"]["unique_graphs"]
    for lengths in ([40, 10, 3], [64, 5]):
        for read_one in (False, True):
            forward_and_backward(layers, lengths, read_one)
    layers.zero_grad()
    _STAND_IN.stand_in_reset()
    forward_and_backward(layers, [50, 30], False)
    with tempfile.NamedTemporaryFile("r") as listed:
        _STAND_IN.stand_in_write(listed.name.encode())
        calls = [line.rstrip("\n").split("\t")[2] for line in listed]
    found = {
        "graphs": graphs,
        "graph_breaks": list(counters["graph_break"]),
        "compiled_again": counters["stats"]["unique_graphs"] - graphs,
        "kernels": [name for name in calls if name.startswith("kernel")],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
