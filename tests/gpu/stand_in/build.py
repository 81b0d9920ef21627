"""Build the stand-in for the CUDA libraries against the installed torch: g++ and nm, a few seconds."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent
RUNTIME_NAME, DRIVER_NAME = "libstandin.so", "libcuda.so.1"
_TORCH_LIBRARIES = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_python.so", "libtorch_cuda_linalg.so")
_OF_CUDA = re.compile(r"(__)?(cuda(?!File)|cublas|cudnn|nccl)\w+")
_OF_DRIVER = re.compile(r"\bcu[A-Z]\w+")
_REAL = re.compile(
    r"cudnnGet(Version|CudartVersion|ErrorString|Property|LastErrorString)|cublasLtGetVersion|nccl.*Version"
    r"|cudaGetError(String|Name)|ncclGet(ErrorString|LastError)"
)
"""Functions that need no device: the real libraries answer them."""


def missing_requirement() -> str | None:
    """Why the stand-in cannot be built here, if it cannot."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    absent = [name for name in ("g++", "nm", "c++filt") if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def build(directory: Path) -> None:
    """Write libstandin.so, to be preloaded, and libcuda.so.1, for the library path."""
    site = Path(_package("torch")).parent
    flags = ["-O1", "-fPIC", "-w", f"-I{SOURCES / 'include'}", f"-I{site / 'nvidia' / 'cu13' / 'include'}"]
    objects = [_compiled(SOURCES / f"{name}.cpp", directory, flags) for name in ("runtime", "libraries")]
    wanted = {
        name
        for library in _TORCH_LIBRARIES
        for name in _symbols(site / "torch" / "lib" / library, "--undefined-only", "-D")
        if _OF_CUDA.fullmatch(name) and not _REAL.fullmatch(name)
    }
    objects.append(_empty_functions(wanted, objects, directory / "rest.cpp", flags))
    _link(objects, directory / RUNTIME_NAME)
    driver = _compiled(SOURCES / "driver.cpp", directory, flags)
    triton = (Path(_package("triton")) / "backends" / "nvidia" / "driver.c").read_text()
    wanted = set(_OF_DRIVER.findall(triton)) | {
        name
        for name in _symbols(site / "torch" / "lib" / "libcaffe2_nvrtc.so", "--undefined-only", "-D")
        if _OF_DRIVER.fullmatch(name)
    }
    _link(
        [driver, _empty_functions(wanted, [driver], directory / "rest_of_driver.cpp", flags)], directory / DRIVER_NAME
    )
    (directory / "libcuda.so").symlink_to(DRIVER_NAME)


def environment(directory: Path, devices: int = 1) -> dict[str, str]:
    """Variables under which a process finds the stand-in."""
    return {
        "LD_PRELOAD": str(directory / RUNTIME_NAME),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(directory), os.environ.get("LD_LIBRARY_PATH")))),
        "TRITON_LIBCUDA_PATH": str(directory),
        "TRITON_CACHE_DIR": str(directory / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(directory / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "STAND_IN_DEVICES": str(devices),
        "OMP_NUM_THREADS": "1",
    }


def _package(name: str) -> str:
    found = importlib.util.find_spec(name)
    assert found is not None, name
    assert found.submodule_search_locations, name
    return found.submodule_search_locations[0]


def _compiled(source: Path, directory: Path, flags: list[str]) -> Path:
    output = directory / f"{source.stem}.o"
    subprocess.run(["g++", "-std=c++17", "-c", *flags, "-o", str(output), str(source)], check=True)
    return output


def _empty_functions(wanted: set[str], objects: list[Path], source: Path, flags: list[str]) -> Path:
    present = {name for file in objects for name in _symbols(file, "--defined-only")}
    functions = "\n".join(f"int {name}() {{ return 0; }}" for name in sorted(wanted - present))
    source.write_text(f'extern "C" {{\n{functions}\n}}\n')
    return _compiled(source, source.parent, flags)


def _symbols(file: Path, *options: str) -> set[str]:
    listed = subprocess.run(["nm", *options, str(file)], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1].split("@")[0] for line in listed.splitlines() if line}


def _link(objects: list[Path], output: Path) -> None:
    names = [str(file) for file in objects]
    subprocess.run(["g++", "-shared", f"-Wl,-soname,{output.name}", "-o", str(output), *names, "-ldl"], check=True)
