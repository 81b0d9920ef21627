"""All ranks on this machine, several by DeepSpeed's launcher: `kind = "none"`."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence

from flows.launching.job import Job, encoded_world
from pipelines.commands.gpus import ACCELERATOR_VARIABLE, may_have_gpus, visible_gpus
from pipelines.commands.process_start import command_of
from pipelines.contract.errors import InputError

LOOPBACK = "127.0.0.1"
RANKS_WITHOUT_GPU = 2
ONE_RANK = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_SIZE": "1",
    "MASTER_ADDR": LOOPBACK,
    "MASTER_PORT": "0",
    "TORCHELASTIC_USE_AGENT_STORE": "False",
}
"""Variables of a rank without peers, in place of any that this process was started with; the launcher sets its own."""


def command(job: Job) -> list[str]:
    """DeepSpeed's launcher of one node, or one rank by itself; 0 ranks mean one per GPU, or two without a GPU.

    A rank alone needs no launcher, which would import DeepSpeed for three seconds before the rank does.
    The command `deepspeed` would import DeepSpeed for seconds, start this launcher, and give the ranks the first GPUs
    of the machine instead of those that CUDA_VISIBLE_DEVICES names.
    """
    ranks = job.ranks or gpu_count() or RANKS_WITHOUT_GPU
    devices = device_ids(ranks)
    if ranks == 1:
        return command_of(job.module, job.arguments)
    options = [
        f"--world_info={encoded_world({LOOPBACK: devices})}",
        f"--master_addr={LOOPBACK}",
        f"--master_port={free_port()}",
    ]
    launcher = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", "--quiet"]
    return [*launcher, *options, "--module", job.module, *job.arguments]


def device_ids(ranks: int) -> Sequence[int | str]:
    """Devices of the ranks: the first ones that CUDA_VISIBLE_DEVICES names, if there are GPUs.

    Raises:
        InputError: it names fewer than there are ranks.
    """
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None or not gpu_count():
        return range(ranks)
    named = [name.strip() for name in value.split(",")]
    if len(named) < ranks:
        raise InputError(
            f"CUDA_VISIBLE_DEVICES = {value}: {ranks} ranks need as many GPUs; name them, or lower the number of ranks"
        )
    return named[:ranks]


def environment() -> dict[str, str]:
    """Variables of the ranks: what one without peers needs, and the accelerator of this machine.

    Ranks refuse a GPU that torch cannot use, instead of training on the CPU.
    """
    return ONE_RANK | ({} if gpu_count() or visible_gpus() else {ACCELERATOR_VARIABLE: "cpu"})


def gpu_count() -> int:
    """GPUs of this machine that the ranks may use."""
    if not may_have_gpus():
        return 0
    # Takes seconds to import, and is needed only when training starts.
    import torch

    return torch.cuda.device_count()


def free_port(address: str = LOOPBACK) -> int:
    """A rendezvous port for the ranks; DeepSpeed's default of 29500 would collide between two runs on one machine."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
