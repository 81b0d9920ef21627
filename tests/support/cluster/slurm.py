"""A real Slurm of two nodes on this machine, without systemd: munged, slurmctld, two slurmd on ports of their own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NODES = ("n1", "n2")

_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=25
PartitionName=test Nodes={nodes} Default=YES MaxTime=INFINITE State=UP
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000\n"


def missing() -> str:
    """What this machine lacks for a Slurm, by name; empty if nothing is missing."""
    names = ("munged", "slurmctld", "slurmd", "salloc", "srun", "scancel")
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    lacks = [name for name in names if shutil.which(name, path=path) is None]
    return ", ".join(lacks) or ("" if os.geteuid() == 0 else "root, for slurmd")


class Slurm:
    """A running cluster; `environment` makes Slurm's commands use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._configure()
            self._start("munged", *self._munged())
            self._wait(lambda: (folder / "munge.socket").exists())
            self._start("slurmctld", "-D", "-c")
            for name in NODES:
                self._start("slurmd", "-D", "-N", name, label=name)
            self._wait(lambda: self.ask("sinfo", "--noheader", "--format=%t %D").strip() == "idle 2")
        except BaseException:
            self.close()
            raise

    def settings(self) -> list[str]:
        """`pretraining.cluster` for both nodes."""
        return ["kind='slurm'", f"nodes={len(NODES)}"]

    def inside(self, command: list[str]) -> list[str]:
        """The command of a program that reaches the nodes: any program of this machine does."""
        return command

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints."""
        own = os.environ | self.environment
        return subprocess.run(command, env=own, capture_output=True, text=True, check=False).stdout

    def jobs(self) -> list[str]:
        """Jobs that are not over, with their states."""
        return self.ask("squeue", "--noheader", "--format=%i %T").splitlines()

    def jobs_left(self, seconds: float = 15.0) -> list[str]:
        """Jobs that are not over after so long; Slurm needs a moment to clean up after one."""
        deadline = time.monotonic() + seconds
        while (left := self.jobs()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left

    def close(self) -> None:
        """End all jobs and daemons."""
        self.ask("scancel", "--full", "--user=root")
        self.jobs_left(30.0)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _configure(self) -> None:
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        host, ports = socket.gethostname(), _free_ports(1 + len(NODES))
        text = _CONFIG.format(folder=self.folder, host=host, port=ports[0], nodes=",".join(NODES))
        lines = "".join(
            _NODE.format(name=name, host=host, port=port) for name, port in zip(NODES, ports[1:], strict=True)
        )
        # Nodes are defined before the partition that has them.
        head, partition = text[: text.index("PartitionName")], text[text.index("PartitionName") :]
        (self.folder / "slurm.conf").write_text(head + lines + partition)

    def _munged(self) -> list[str]:
        names = {"key": "munge.key", "socket": "munge.socket", "pid": "munged.pid", "seed": "munged.seed"}
        flags = {"key": "--key-file", "socket": "--socket", "pid": "--pid-file", "seed": "--seed-file"}
        files = [f"{flags[kind]}={self.folder / name}" for kind, name in names.items()]
        return ["--foreground", "--force", f"--log-file={self.folder / 'munged.log'}", *files]

    def _start(self, program: str, *arguments: str, label: str = "") -> None:
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
        found = shutil.which(program, path=path)
        assert found is not None
        with open(self.folder / f"{label or program}.log", "ab") as log:
            self._daemons[label or program] = subprocess.Popen(
                [found, *arguments],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _wait(self, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not is_ready():
            ended = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.log"))
                raise RuntimeError(f"Slurm did not start ({', '.join(ended)}):\n{logs}")
            time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """A Slurm for as long as the context lasts."""
    cluster = Slurm(folder)
    try:
        yield cluster
    finally:
        cluster.close()
