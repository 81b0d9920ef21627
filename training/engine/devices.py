"""The device of a rank: a GPU where there is one, prepared for this code's kernels."""

from __future__ import annotations

import ctypes
import os

import torch

from pipelines.commands.cores import THREADS_VARIABLE, available_cores
from pipelines.commands.gpus import ACCELERATOR_VARIABLE, visible_gpus
from pipelines.contract.errors import InputError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
_NEVER_BYTES = (1 << 31) - 1
_HUGE_PAGES_VARIABLE = "THP_MEM_ALLOC_ENABLE"
"""torch then asks Linux for huge pages for tensors of 2 MiB and more; it is read at the first allocation."""


def chosen_device(local_rank: int) -> torch.device:
    """This rank's GPU, or the CPU; sets the number of threads unless OMP_NUM_THREADS is given.

    Raises:
        InputError: the machine has a GPU that torch cannot use, and nobody asked for the CPU.
    """
    if THREADS_VARIABLE not in os.environ:
        peers = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))
        torch.set_num_threads(max(1, available_cores() // peers))
    if not has_gpu():
        keep_memory()
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    use_flash_kernels()
    return torch.device("cuda", local_rank)


def device_of_one_process() -> torch.device:
    """The device of a command that trains nothing: the first GPU, or the CPU.

    Raises:
        InputError: as `chosen_device`.
    """
    if not has_gpu():
        keep_memory()
        return torch.device("cpu")
    use_flash_kernels()
    return torch.device("cuda")


def keep_memory() -> None:
    """Let this process keep freed memory, and use huge pages for tensors.

    A step allocates the same activations as the one before. By default glibc returns them to Linux, which fills each
    page with zeros again: a tenth of a training step. Settings of the user, by environment, are kept.
    """
    os.environ.setdefault(_HUGE_PAGES_VARIABLE, "1")
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    # Other C libraries have no such function.
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            set_option(option, _NEVER_BYTES)


def has_gpu() -> bool:
    """Whether there is a GPU to use.

    Raises:
        InputError: as `chosen_device`.
    """
    if os.environ.get(ACCELERATOR_VARIABLE) == "cpu":
        return False
    if not torch.cuda.is_available():
        if gpus := visible_gpus():
            raise InputError(
                f"{', '.join(gpus)}: torch {torch.__version__} cannot use this GPU ({_reason()}); update the driver "
                f"or install torch's build for it; {ACCELERATOR_VARIABLE}=cpu uses the CPU"
            )
        return False
    return True


def use_flash_kernels() -> None:
    """Keep attention from cuDNN's kernels.

    torch prefers them on Hopper, but cuDNN builds a plan for each new number of tokens, which takes longer than the
    step, and keeps all of them; packed batches have another number at each step. It affects this process only.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def _reason() -> str:
    if torch.version.cuda is None:
        return "a build without CUDA"
    try:
        torch.empty(0, device="cuda")
    except (RuntimeError, AssertionError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return "it finds none"
