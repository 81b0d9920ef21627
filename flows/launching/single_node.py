"""All ranks on this machine, by DeepSpeed's launcher: `kind = "none"`."""

from __future__ import annotations

import socket
import sys

from flows.launching.job import Job
from pipelines.commands.gpus import ACCELERATOR_VARIABLE, visible_gpus

LOOPBACK = "127.0.0.1"
RANKS_WITHOUT_GPU = 2


def command(job: Job) -> list[str]:
    """DeepSpeed's launcher on this node; 0 ranks mean one per GPU, or two without a GPU."""
    ranks = job.ranks or gpu_count() or RANKS_WITHOUT_GPU
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner"]
    options = [f"--num_accelerators={ranks}", f"--master_addr={LOOPBACK}", f"--master_port={free_port()}"]
    return [*launcher, "--quiet", *options, "--module", job.module, *job.arguments]


def environment() -> dict[str, str]:
    """The accelerator of this machine; ranks refuse a GPU that torch cannot use, instead of training on the CPU."""
    return {} if gpu_count() or visible_gpus() else {ACCELERATOR_VARIABLE: "cpu"}


def gpu_count() -> int:
    """GPUs of this machine that the ranks may use."""
    # Takes seconds to import, and is needed only when training starts.
    import torch

    return torch.cuda.device_count()


def free_port(address: str = LOOPBACK) -> int:
    """A rendezvous port for the ranks; DeepSpeed's default of 29500 would collide between two runs on one machine."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
