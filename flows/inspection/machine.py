"""Detect which requirements and optional parts of Clozeworks a machine has, without importing any of them.

Must import the standard library only, and modules that do the same: this module reports which other packages are
missing. An absent part is `missing` if it is required, else `optional`.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.commands.cores import available_cores
from pipelines.staging.default_place import default_directory

State = Literal["ok", "missing", "optional"]

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OLDEST_PYTHON, PYTHON_TOO_NEW = (3, 11), (3, 14)
EXTRAS = ("pipelines", "training", "flows")
MIN_DISK_BYTES = 2 << 30
"""The demo workspace takes 0.2 GB; for checkpoints and examples of larger runs see `clozeworks estimate`."""
MIN_MEMORY_BYTES = 4 << 30
"""Two workers of 0.6 GB each (`make bench NAME=growth`), or two ranks with torch and DeepSpeed; the page cache."""
SHARED_MEMORY_BYTES_A_RANK = 66 << 20
"""Mapped by DeepSpeed's operator: two buffers of 32 MiB and two small ones (csrc/cpu/comm/shm.cpp)."""
SPARK_JAVA_VERSIONS = (11, 17)
MLFLOW_PORT, PREFECT_PORT = 5000, 4200

_PROGRAM_SECONDS = 10.0
_SETUP = "make setup"


@dataclass(frozen=True)
class Finding:
    """One part: its state, what was found, and the remedy if it is absent (else empty)."""

    part: str
    state: State
    found: str
    remedy: str = ""


def findings(directory: str = ".") -> Iterator[Finding]:
    """Check every part, in the order in which a user would install them.

    Args:
        directory: on the disk that a run would fill.
    """
    for look in (_python, _compiler, _ninja, _git, *(_extra(name) for name in EXTRAS), _lock, _torch, _gpu):
        yield look()
    for look in (_deepspeed_operator, _compiled_loops, _cores, _memory, _shared_memory):
        yield look()
    yield _disk(directory)
    yield _port("MLflow", MLFLOW_PORT)
    yield _port("Prefect", PREFECT_PORT)
    for look in (_java, _maven, _namespaces, _spark_jars):
        yield look()


def _finding(part: str, is_there: bool, found: str, remedy: str, required: bool = True) -> Finding:
    state: State = "ok" if is_there else "missing" if required else "optional"
    return Finding(part, state, found, "" if is_there else remedy)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    is_known = OLDEST_PYTHON <= sys.version_info[:2] < PYTHON_TOO_NEW
    return _finding("Python", is_known, f"{version} in {sys.prefix}", "3.11 to 3.13 is needed: make PYTHON=python3.12")


def _compiler() -> Finding:
    return _program("C++ compiler", (os.environ.get("CXX", "c++"), "g++", "clang++"), "install g++ or clang")


def _ninja() -> Finding:
    # Without activation the environment's bin is not on the PATH; DeepSpeed's build adds it.
    own = os.path.join(os.path.dirname(sys.executable), "ninja")
    return _program("ninja", (own, "ninja"), f"{_SETUP} installs it")


def _git() -> Finding:
    return _program("git", ("git",), "install git; needed for development only", required=False)


def _program(part: str, names: tuple[str, ...], remedy: str, required: bool = True) -> Finding:
    """The first installed program of several, and the first line of its `--version`."""
    for name in names:
        if path := shutil.which(name):
            return Finding(part, "ok", f"{_first_line([path, '--version'])} ({path})")
    return _finding(part, False, "not on the PATH", remedy, required)


def _first_line(command: list[str]) -> str:
    try:
        result = subprocess.run(  # noqa: S603  # no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_PROGRAM_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run ({type(error).__name__})"
    lines = [line.strip() for line in result.stdout.decode(errors="replace").splitlines() if line.strip()]
    return lines[0] if lines else "reports no version"


def _extra(extra: str) -> Callable[[], Finding]:
    """Check that the direct dependencies of an extra are installed."""

    def look() -> Finding:
        needed = [name for name in _direct_dependencies(extra) if name]
        absent = [name for name in needed if _version(name) is None]
        found = f"{len(needed)} packages" if not absent else f"not installed: {', '.join(absent)}"
        if not needed:
            found = "requirements unknown: neither pyproject.toml nor an installed clozeworks"
        return _finding(f"packages: {extra}", bool(needed) and not absent, found, _SETUP)

    return look


def _direct_dependencies(extra: str) -> list[str]:
    """Names from pyproject.toml or, without a checkout, from the metadata of the installed distribution."""
    try:
        with open(os.path.join(ROOT, "pyproject.toml"), "rb") as stream:
            project = tomllib.load(stream)["project"]
        return [_name_of(line) for line in project["dependencies"] + project["optional-dependencies"][extra]]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        pass
    try:
        lines = importlib.metadata.requires("clozeworks") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    marked = re.compile(rf"extra\s*==\s*['\"]{extra}['\"]")
    return [_name_of(line) for line in lines if "extra" not in line or marked.search(line)]


def _name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return match.group() if match else ""


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _lock() -> Finding:
    """Compare the installed versions with those of the lock, which may list several, one for each Python."""
    try:
        with open(os.path.join(ROOT, "requirements.lock"), encoding="utf-8") as stream:
            pinned = [re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)", line) for line in stream]
    except OSError:
        return _finding("versions as locked", False, "no requirements.lock", "use a checkout", required=False)
    locked: dict[str, set[str]] = {}
    for match in pinned:
        if match:
            locked.setdefault(match[1], set()).add(match[2])
    others = []
    for name, versions in sorted(locked.items()):
        installed = _version(name)
        # A local label such as +cpu marks a build of the same version.
        if installed is not None and not {installed, installed.partition("+")[0]} & versions:
            others.append(f"{name} {installed} (locked {' or '.join(sorted(versions))})")
    found = f"{len(locked)} packages compared" if not others else ", ".join(others[:5])
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    return _finding("versions as locked", not others, found + more, _SETUP, required=False)


def _torch() -> Finding:
    version, deepspeed = _version("torch"), _version("deepspeed")
    built_for = _cuda_of_torch()
    found = f"torch {version or 'missing'} ({f'CUDA {built_for}' if built_for else 'CPU'}), "
    found += f"DeepSpeed {deepspeed or 'missing'}"
    return _finding("torch, DeepSpeed", None not in (version, deepspeed), found, _SETUP)


def _cuda_of_torch() -> str | None:
    """The CUDA version that torch was built for, from its version.py: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        with open(os.path.join(os.path.dirname(spec.origin), "version.py"), encoding="utf-8") as stream:
            match = re.search(r"^cuda.*=\s*'([^']+)'", stream.read(), re.MULTILINE)
    except OSError:
        return None
    return match[1] if match else None


def _gpu() -> Finding:
    part, without = "GPU", "training uses two CPU ranks; for a GPU install NVIDIA's driver"
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return _finding(part, False, "unknown: nvidia-ml-py is not installed", _SETUP, required=False)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return _finding(part, False, f"none ({error})", without, required=False)
    try:
        names = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name, total = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetMemoryInfo(handle).total
            names.append(f"{name if isinstance(name, str) else name.decode()} {_gib(int(total))}")
        driver = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError as error:
        return _finding(part, False, f"does not answer ({error})", "see nvidia-smi", required=False)
    finally:
        pynvml.nvmlShutdown()
    found = f"{', '.join(names) or 'none'}; driver {driver if isinstance(driver, str) else driver.decode()}"
    if names and _cuda_of_torch() is None:
        return Finding(part, "missing", f"{found}; torch is a build without CUDA", "install torch's build for CUDA")
    return _finding(part, bool(names), found, without, required=False)


def _deepspeed_operator() -> Finding:
    # `doctor` imports the standard library only; training.engine.communication_op has the same default.
    directory = os.environ.get("TORCH_EXTENSIONS_DIR") or os.path.join(sys.prefix, "torch_extensions")
    built = glob.glob(os.path.join(glob.escape(directory), "**", "deepspeed_shm_comm.so"), recursive=True)
    found = built[0] if built else f"not in {directory}"
    remedy = "python -m training.build_ops compiles it (minutes); else the first training on CPU does"
    return _finding("DeepSpeed's CPU op", bool(built), found, remedy, required=False)


def _compiled_loops() -> Finding:
    kept = glob.glob(os.path.join(glob.escape(ROOT), "pipelines", "*", "__pycache__", "*.nbi"))
    found = f"{len(kept)} cached by numba" if kept else "none cached"
    remedy = "python -m pipelines.compile_loops; else the first job compiles them"
    return _finding("compiled loops", bool(kept), found, remedy, required=False)


def _cores() -> Finding:
    cores = available_cores()
    remedy = "everything runs, two ranks share the core; for one worker: --set run.workers=1"
    return _finding("cores", cores >= 2, str(cores), remedy, required=False)


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        # Limit of a container; without one, cgroups v2 has "max" and v1 a number larger than the memory.
        if (text := _text_of(path).strip()).isdecimal():
            total = min(total, int(text))
    available = re.search(r"MemAvailable:\s+(\d+) kB", _text_of("/proc/meminfo"))
    found = _gib(total) + (f", {_gib(int(available[1]) << 10)} available" if available else "")
    return _finding("memory", total >= MIN_MEMORY_BYTES, found, f"the demo needs at least {_gib(MIN_MEMORY_BYTES)}")


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return ""


def _shared_memory() -> Finding:
    needed = 2 * SHARED_MEMORY_BYTES_A_RANK
    if not os.path.isdir("/dev/shm"):  # noqa: S108  # shared memory
        return _finding(
            "shared memory", False, "no /dev/shm", "ranks on a CPU communicate through gloo only", required=False
        )
    free = shutil.disk_usage("/dev/shm").free  # noqa: S108  # shared memory
    remedy = f"two CPU ranks need {needed >> 20} MiB: docker run --shm-size=1g"
    return _finding("shared memory", free >= needed, f"{_gib(free)} free", remedy)


def _disk(directory: str) -> Finding:
    # A run in an object store fills the disk of its local copies.
    place = os.path.abspath(default_directory() if "://" in directory else directory)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    remedy = f"free {_gib(MIN_DISK_BYTES)}, or choose another disk with --workspace"
    return _finding("disk", free >= MIN_DISK_BYTES, f"{_gib(free)} free at {place}", remedy)


def _port(server: str, port: int) -> Finding:
    with socket.socket() as probe:
        # As servers do: a recently closed connection must not count as use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            remedy = "possibly your own server; clozeworks ui takes another port"
            return _finding(f"port {port} ({server})", False, "in use", remedy, required=False)
    return Finding(f"port {port} ({server})", "ok", "free")


def _java() -> Finding:
    remedy, path = "for Spark only: install a JDK, 17 or 11", shutil.which("java")
    if path is None:
        return _finding("Java", False, "not on the PATH", remedy, required=False)
    line = _first_line([path, "-version"])
    match = re.search(r'"(\d+)', line)
    is_known = match is not None and int(match[1]) in SPARK_JAVA_VERSIONS
    return _finding("Java", is_known, line, remedy, required=False)


def _maven() -> Finding:
    path = shutil.which("mvn")
    return _finding("Maven", path is not None, path or "not on the PATH", "for Spark only: install Maven", False)


def _namespaces() -> Finding:
    absent = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    found = f"not on the PATH: {', '.join(absent)}" if absent else "unshare, nsenter, ip"
    return _finding("Spark's network", not absent, found, "for Spark only: install util-linux and iproute2", False)


def _spark_jars() -> Finding:
    """The class path that pipelines.runners.maven caches, by the hash of the pom."""
    # `doctor` imports the standard library only; pipelines.runners.maven has the same paths.
    try:
        with open(os.path.join(ROOT, "pipelines", "runners", "maven", "spark.xml"), "rb") as stream:
            digest = hashlib.sha256(stream.read()).hexdigest()[:12]
    except OSError:
        return _finding(
            "Spark's jars", False, "no pom of Spark", "for Spark only: reinstall the package", required=False
        )
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "clozeworks", "spark")
    jars = glob.glob(os.path.join(glob.escape(cache), f"test-*-{digest}", "*.jar"))
    remedy = "for Spark only: the first job on it fetches them with Maven, once"
    return _finding("Spark's jars", bool(jars), f"{len(jars)} in {cache}", remedy, required=False)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):,.1f} GiB"
