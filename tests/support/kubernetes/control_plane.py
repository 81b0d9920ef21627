"""A real control plane on loopback: etcd, API server, controllers and scheduler, built once from their Go modules.

Kubernetes cannot be installed by `go install`, for its go.mod replaces its libraries by folders of its repository: the
program is `main.go` of this folder in a module that replaces them by their releases. The first build takes forty
minutes of two cores: CLOZEWORKS_TEST_KUBERNETES=build asks for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml
from tests.support import SUPPORT
from tests.support.go_programs import GoProgram
from tests.support.kubernetes.kubelet import Api
from tests.support.object_store.s3_server import free_port

VERSION = "1.34.2"
ADMIN_TOKEN = "administrator"
_START_SECONDS = 120.0
_LIBRARIES = [
    "api",
    "apiextensions-apiserver",
    "apimachinery",
    "apiserver",
    "cli-runtime",
    "client-go",
    "cloud-provider",
    "cluster-bootstrap",
    "code-generator",
    "component-base",
    "component-helpers",
    "controller-manager",
    "cri-api",
    "cri-client",
    "csi-translation-lib",
    "dynamic-resource-allocation",
    "endpointslice",
    "externaljwt",
    "kms",
    "kube-aggregator",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "metrics",
    "mount-utils",
    "pod-security-admission",
    "sample-apiserver",
    "sample-cli-plugin",
    "sample-controller",
]


def _write_sources(folder: Path) -> None:
    replaced = "".join(f"\tk8s.io/{name} => k8s.io/{name} v0{VERSION[1:]}\n" for name in _LIBRARIES)
    (folder / "go.mod").write_text(
        "module clozeworks.test/controlplane\n\ngo 1.24.0\n\ngodebug default=go1.24\n\n"
        f"require k8s.io/kubernetes v{VERSION}\n\nreplace (\n{replaced})\n"
    )
    shutil.copy(SUPPORT / "kubernetes" / "main.go", folder)


PROGRAM = GoProgram(
    module="kubernetes",
    version=VERSION,
    program="controlplane",
    commands=[
        ["mod", "tidy", "-e"],
        ["build", "-trimpath", "-ldflags", "-s -w", "-o", "../building/controlplane", "."],
    ],
    timeout_seconds=3_000.0,
    environment={"GOFLAGS": "-mod=mod", "CGO_ENABLED": "0", "GOMAXPROCS": "2"},
    write_sources=_write_sources,
)


def program() -> Path | None:
    """The control plane's program where it has been built; it is built only where the environment asks for that."""
    return PROGRAM.built() if os.environ.get("CLOZEWORKS_TEST_KUBERNETES") == "build" else PROGRAM.cached()


@dataclass(frozen=True)
class ControlPlane:
    """A running control plane."""

    url: str
    directory: Path

    @property
    def api(self) -> Api:
        """Calls as the administrator."""
        return Api(self.url, ADMIN_TOKEN)

    def kubeconfig(self, token: str = ADMIN_TOKEN, namespace: str = "default") -> Path:
        """A file by which the clients reach it with a token."""
        path = self.directory / f"kubeconfig-{abs(hash(token)) % 10_000}"
        certificate = self.directory / "certificates" / "apiserver.crt"
        trust = (
            {"certificate-authority": str(certificate)} if certificate.exists() else {"insecure-skip-tls-verify": True}
        )
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url, **trust}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        }
        path.write_text(yaml.safe_dump(document))
        return path

    def apply(self, document: dict[str, object], namespace: str) -> None:
        """Apply one document by server-side apply, unknown and duplicate fields refused, as kubectl does."""
        kind, version = str(document["kind"]), str(document["apiVersion"])
        name = document["metadata"]["name"]  # type: ignore[index]
        group = f"/api/{version}" if version == "v1" else f"/apis/{version}"
        plural = {"NetworkPolicy": "networkpolicies"}.get(kind, f"{kind.lower()}s")
        within = "" if kind == "Namespace" else f"/namespaces/{namespace}"
        path = f"{group}{within}/{plural}/{name}?fieldManager=test&fieldValidation=Strict&force=true"
        self.api.call("PATCH", path, document, patch="apply-patch+yaml")

    def token_of(self, account: str, namespace: str) -> str:
        """A token of a service account."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        return str(self.api.call("POST", path, body)["status"]["token"])


@contextmanager
def running_control_plane(executable: Path, directory: Path) -> Iterator[ControlPlane]:
    """Run a control plane until the block ends."""
    etcd, peers, port = free_port(), free_port(), free_port()
    plane = ControlPlane(f"https://127.0.0.1:{port}", directory)
    key, tokens = directory / "accounts.key", directory / "tokens.csv"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    tokens.write_text(f'{ADMIN_TOKEN},admin,1,"system:masters"\n')
    admin = plane.kubeconfig()
    commands = [
        [
            *("etcd", f"--data-dir={directory}/etcd", "--unsafe-no-fsync", "--log-level=error"),
            *(f"--listen-client-urls=http://127.0.0.1:{etcd}", f"--advertise-client-urls=http://127.0.0.1:{etcd}"),
            *(f"--listen-peer-urls=http://127.0.0.1:{peers}", f"--initial-cluster=default=http://127.0.0.1:{peers}"),
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peers}",
        ],
        [
            *("kube-apiserver", f"--etcd-servers=http://127.0.0.1:{etcd}", f"--secure-port={port}"),
            *("--bind-address=127.0.0.1", f"--cert-dir={directory}/certificates", f"--token-auth-file={tokens}"),
            *("--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24"),
            *("--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={key}"),
            *(f"--service-account-signing-key-file={key}", "--kubelet-preferred-address-types=InternalIP"),
        ],
        [
            *("kube-controller-manager", f"--kubeconfig={admin}", "--leader-elect=false", "--secure-port=0"),
            *(f"--service-account-private-key-file={key}", "--node-monitor-grace-period=10s"),
            "--node-monitor-period=2s",
        ],
        ["kube-scheduler", f"--kubeconfig={admin}", "--leader-elect=false", "--secure-port=0"],
    ]
    processes: list[subprocess.Popen[bytes]] = []

    def start(command: list[str]) -> None:
        with (directory / f"{command[0]}.log").open("wb") as log:
            processes.append(subprocess.Popen([executable, *command], stdout=log, stderr=log, cwd=directory))

    try:
        for command in commands[:2]:
            start(command)
        # The controllers wait for the API server for ten seconds only.
        _await(plane, processes, "/readyz?verbose")
        for command in commands[2:]:
            start(command)
        # They work when the namespace has its service account.
        _await(plane, processes, "/api/v1/namespaces/default/serviceaccounts/default")
        yield plane
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def _await(plane: ControlPlane, processes: list[subprocess.Popen[bytes]], path: str) -> None:
    """Wait until a path is there."""
    deadline = time.monotonic() + _START_SECONDS
    api = plane.api
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        try:
            if api.client.get(path).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    logs = "\n".join(log.read_text()[-1000:] for log in plane.directory.glob("*.log"))
    raise RuntimeError(f"the control plane did not start:\n{logs}")
