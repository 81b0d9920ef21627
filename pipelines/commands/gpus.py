"""GPUs that the operating system shows, whether or not torch can use them; light, without torch."""

from __future__ import annotations

import glob
import os

_DEVICES = "/dev/nvidia[0-9]*"
_OTHER_DEVICES = ("/dev/kfd", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvmap")
"""Of AMD's driver, of Windows under WSL and of NVIDIA's Jetson, which do not show single GPUs."""
_HIDDEN = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES that hide all GPUs."""

ACCELERATOR_VARIABLE = "DS_ACCELERATOR"
"""DeepSpeed's choice of a device; `cpu` trains on CPUs although there are GPUs."""


def may_have_gpus() -> bool:
    """False where torch certainly finds no GPU, and need not be asked."""
    if os.environ.get(ACCELERATOR_VARIABLE) == "cpu":
        return False
    return bool(visible_gpus()) or any(os.path.exists(path) for path in _OTHER_DEVICES)


def visible_gpus() -> list[str]:
    """Device files of NVIDIA's driver, unless CUDA_VISIBLE_DEVICES or DS_ACCELERATOR rules them out."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in _HIDDEN or os.environ.get(ACCELERATOR_VARIABLE) == "cpu":
        return []
    return sorted(glob.glob(_DEVICES))
