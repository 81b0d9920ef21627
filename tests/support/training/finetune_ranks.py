"""Commands run by so many processes on loopback, as a launcher starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def outputs_of_ranks(command: Sequence[str], ranks: int) -> list[str]:
    """What each rank of a command writes; all must succeed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        subprocess.Popen(
            command,
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
            | {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": str(ranks)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0] * ranks, outputs
    return outputs


def finetune_on_ranks(recipe: Path, ranks: int, *arguments: str) -> None:
    """Fine-tune by so many processes."""
    outputs_of_ranks([sys.executable, "-m", "training.finetune", str(recipe), *arguments], ranks)
