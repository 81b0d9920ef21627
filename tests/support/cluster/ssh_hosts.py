"""Two hosts on one machine: network namespaces joined by a cable, a real sshd in each, keys made for the test.

Both see the same files, as nodes with a shared file system do, but for disks of their own. Interfaces and addresses
exist inside the namespaces only; all of it ends with `close`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from tests.support.cluster.own_disk import OwnDisk

SSHD = "/usr/sbin/sshd"

_CONFIG = """\
Port 22
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile {folder}/{name}.pid
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
LogLevel ERROR
"""

_CLIENT = """\
Host *
  User root
  IdentityFile {folder}/user_key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking yes
"""


def missing() -> str:
    """What this machine lacks for two hosts, by name; empty if nothing is missing."""
    lacks = [name for name in ("ip", "ssh", "ssh-keygen", SSHD) if shutil.which(name) is None]
    if lacks:
        return ", ".join(lacks)
    if os.geteuid() != 0:
        return "root, for network namespaces"
    name = f"cw{secrets.token_hex(3)}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "network namespaces"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return ""


class SshHosts:
    """Hosts `a` and `b` by their addresses; programs that reach both run in the namespace of `a`."""

    def __init__(self, folder: Path, disks: Sequence[OwnDisk] = ()) -> None:
        self.folder = folder
        self._disks = disks
        # Interface names have 15 characters at most.
        self._token = secrets.token_hex(3)
        self.namespaces = [f"cw{self._token}{name}" for name in "ab"]
        self.addresses = ["10.213.7.1", "10.213.7.2"]
        self._servers: dict[int, subprocess.Popen[bytes]] = {}
        self.ssh_config = folder / "ssh_config"
        try:
            self._join()
            self._write_keys()
            for index in range(2):
                self._serve(index)
        except BaseException:
            self.close()
            raise

    def inside(self, command: list[str], index: int = 0) -> list[str]:
        """A command that runs on a host without ssh."""
        within = ["ip", "netns", "exec", self.namespaces[index], *command]
        return self._disks[index].command(within) if self._disks else within

    @property
    def environment(self) -> dict[str, str]:
        """Of a program that reaches the hosts; ssh needs none."""
        return {}

    def settings(self) -> list[str]:
        """`pretraining.cluster` for both hosts."""
        return ["kind='hostfile'", f"hostfile={self.hostfile()!r}", f"options={['-F', str(self.ssh_config)]!r}"]

    def hostfile(self, slots: int = 1) -> str:
        """A hostfile with both hosts."""
        path = self.folder / "hostfile"
        path.write_text("".join(f"{address} slots={slots}\n" for address in self.addresses))
        return str(path)

    def pids(self, index: int) -> list[int]:
        """Processes of a host."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.namespaces[index]], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in listed.stdout.split()]

    def cut(self, index: int) -> None:
        """Pull the cable: no packet passes any more, and no connection is closed."""
        self._ip("-n", self.namespaces[index], "link", "set", f"cw{self._token}", "down")

    def mend(self, index: int) -> None:
        """Plug the cable in again."""
        self._ip("-n", self.namespaces[index], "link", "set", f"cw{self._token}", "up")

    def kill(self, index: int) -> None:
        """Kill every process of a host, its sshd included."""
        for pid in self.pids(index):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def hidden(self, index: int, path: str) -> Iterator[None]:
        """Let a host see an empty directory there, as one without the shared file system does."""
        # Each sshd has a mount namespace of its own, so this reaches no other process.
        enter = ["nsenter", "--mount", "--target", str(self._servers[index].pid)]
        subprocess.run([*enter, "mount", "-t", "tmpfs", "none", path], check=True)
        try:
            yield
        finally:
            subprocess.run([*enter, "umount", path], check=True)

    def boot(self, index: int) -> None:
        """Start the sshd of a host again."""
        self._servers[index].wait()
        self._serve(index)

    def close(self) -> None:
        """End all processes of both hosts, and remove them."""
        for index, namespace in enumerate(self.namespaces):
            self.kill(index)
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)
        for server in self._servers.values():
            server.kill()
            server.wait()

    def _join(self) -> None:
        link = f"cw{self._token}"
        for namespace in self.namespaces:
            self._ip("netns", "add", namespace)
            self._ip("-n", namespace, "link", "set", "lo", "up")
        first, second = self.namespaces
        # Created inside the namespaces: the machine's own interfaces are never touched.
        self._ip("-n", first, "link", "add", link, "type", "veth", "peer", "name", link, "netns", second)
        for namespace, address in zip(self.namespaces, self.addresses, strict=True):
            self._ip("-n", namespace, "address", "add", f"{address}/24", "dev", link)
            self._ip("-n", namespace, "link", "set", link, "up")

    def _write_keys(self) -> None:
        for name in ("host_key", "user_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.folder / name)], check=True
            )
        public = (self.folder / "host_key.pub").read_text()
        (self.folder / "known_hosts").write_text("".join(f"{address} {public}" for address in self.addresses))
        self.ssh_config.write_text(_CLIENT.format(folder=self.folder))

    def _serve(self, index: int) -> None:
        # sshd separates privileges there; Debian makes it when the service starts.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        name, address = "ab"[index], self.addresses[index]
        config = self.folder / f"sshd_{name}"
        config.write_text(_CONFIG.format(folder=self.folder, name=name, address=address))
        command = self.inside([SSHD, "-D", "-e", "-f", str(config)], index)
        with open(self.folder / f"{name}.log", "ab") as log:
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._servers[index] = server
        deadline = time.monotonic() + 20
        probe = self.inside(["ssh", "-F", str(self.ssh_config), "-o", "BatchMode=yes", address, "true"])
        while (said := subprocess.run(probe, capture_output=True, text=True, check=False)).returncode:
            if time.monotonic() > deadline or server.poll() is not None:
                raise RuntimeError(f"sshd of {address}: {said.stderr}{(self.folder / f'{name}.log').read_text()}")
            time.sleep(0.2)

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def ranks_of(hosts: SshHosts, index: int) -> list[psutil.Process]:
    """The processes that train on a host."""
    found = []
    for pid in hosts.pids(index):
        try:
            process = psutil.Process(pid)
            if "--local_rank=0" in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def left_on(hosts: SshHosts) -> list[list[str]]:
    """Command lines of what a run has left on both hosts; the program of a connection may need a moment to end."""
    deadline = time.monotonic() + 5
    while (left := training_processes(hosts)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def training_processes(hosts: SshHosts) -> list[list[str]]:
    """Command lines of all that a run started on both hosts and that lives."""
    lines = []
    for pid in [*hosts.pids(0), *hosts.pids(1)]:
        try:
            lines.append(psutil.Process(pid).cmdline())
        except psutil.NoSuchProcess:
            continue
    return [line for line in lines if any("training" in word or "node_agent" in word for word in line)]


@contextlib.contextmanager
def ssh_hosts(folder: Path, disks: Sequence[OwnDisk] = ()) -> Iterator[SshHosts]:
    """Two hosts for as long as the context lasts, with a disk of each if there are any."""
    hosts = SshHosts(folder, disks)
    try:
        yield hosts
    finally:
        hosts.close()
