"""Print the number of plans that cuDNN builds for batches of other sizes, with and without `use_flash_kernels`."""

from __future__ import annotations

import ctypes
import json
import tempfile

import numpy as np
import torch

from training.engine.devices import use_flash_kernels
from training.kernels.packed_attention import packed_attention

_STAND_IN = ctypes.CDLL(None)


def plans_of(num_tokens: int) -> int:
    """Plans that forward and backward of one packed batch have built."""
    _STAND_IN.stand_in_reset()
    joined = torch.zeros(num_tokens, 3, 4, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    cu_seqlens = torch.from_numpy(np.array([0, num_tokens // 2, num_tokens], dtype=np.int32)).to("cuda")
    output = packed_attention(joined, cu_seqlens, num_tokens - num_tokens // 2, 0.0)
    output.sum().backward()
    with tempfile.NamedTemporaryFile("r") as listed:
        _STAND_IN.stand_in_write(listed.name.encode())
        lines = [line.rstrip("\n").split("\t") for line in listed]
    return sum(int(count) for count, _, name in lines if name == "cudnn descriptor 5")


def main() -> None:
    found = {"cudnn": [plans_of(num_tokens) for num_tokens in (1_000, 1_001, 1_002)]}
    use_flash_kernels()
    found["flash"] = [plans_of(num_tokens) for num_tokens in (1_003, 1_004, 1_005)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
