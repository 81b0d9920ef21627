"""A stand-in for the kubelet: it runs the containers of pods as processes of this machine, and serves their logs.

Everything else is real: API server, controllers and scheduler see nodes that report, pods that start, end and are
deleted with a grace period. An image is a program of `images`; another one cannot be pulled. Volumes are folders, paths
within arguments and variables are mapped to them, and the name of pod 0 is loopback, for there is no cluster DNS.
Probes are not run.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

Document = dict[str, Any]
CAPACITY = {"cpu": "64", "memory": "512Gi", "pods": "20", "nvidia.com/gpu": "8", "ephemeral-storage": "1Ti"}
BEAT_SECONDS = 2.0


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Api:
    """The HTTP calls of a kubelet, as the cluster's administrator."""

    def __init__(self, url: str, token: str):
        headers = {"Authorization": f"Bearer {token}"}
        self.client = httpx.Client(base_url=url, headers=headers, verify=False, timeout=30.0)  # noqa: S501  # own server

    def call(
        self, method: str, path: str, body: Document | None = None, patch: str = "strategic-merge-patch+json"
    ) -> Document:
        kind = f"application/{patch}" if method == "PATCH" else "application/json"
        content = None if body is None else json.dumps(body)
        answer = self.client.request(method, path, content=content, headers={"Content-Type": kind})
        if answer.status_code >= 400 and answer.status_code not in (404, 409):
            raise RuntimeError(f"{method} {path}: {answer.text}")
        found: Document = answer.json()
        return found

    def watch(self, path: str) -> Iterator[Document]:
        with self.client.stream("GET", path, params={"watch": "true", "timeoutSeconds": "20"}) as answer:
            for line in answer.iter_lines():
                yield json.loads(line)


class Container:
    """The process of one pod, and its log with a time before each line."""

    def __init__(self, command: list[str], environment: dict[str, str], cwd: str, log: Path):
        self.log, self.started = log, now()
        self.ending = False
        self.process = subprocess.Popen(
            command, env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        log.touch()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.log.open("ab") as target:
            for line in self.process.stdout:
                at = time.time_ns()
                stamp = datetime.fromtimestamp(at // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
                target.write(f"{stamp}.{at % 10**9:09d}Z ".encode() + line)
                target.flush()

    def send(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return


class Kubelet:
    """Nodes of a test's cluster.

    Args:
        api: of the control plane.
        directory: for volumes, logs and the certificate.
        images: program of each image that can be pulled.
        claims: folder of each persistent volume claim.
        environment: variables of every container, below its own.
    """

    def __init__(
        self,
        api: Api,
        directory: Path,
        images: dict[str, list[str]],
        claims: dict[str, Path],
        environment: dict[str, str],
    ):
        self.api, self.directory, self.images, self.claims = api, directory, images, claims
        self.environment = environment
        self.containers: dict[str, Container] = {}
        self.off: set[str] = set()
        self._nodes: list[str] = []
        self._ports: dict[str, int] = {}
        self._known: set[str] = set()
        self._stop = threading.Event()
        self._server = self._serve()
        for target in (self._beat, self._watch):
            threading.Thread(target=target, daemon=True).start()

    def add_node(self, name: str) -> None:
        """Register a machine with CAPACITY."""
        self.api.call("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}})
        self._nodes.append(name)
        self._report(name)

    def power_off(self, name: str) -> None:
        """The machine is gone at once: no report, no log, no process."""
        self.off.add(name)
        for pod in self.api.call("GET", f"/api/v1/pods?fieldSelector=spec.nodeName={name}")["items"]:
            if container := self.containers.get(pod["metadata"]["uid"]):
                container.send(signal.SIGKILL)

    def close(self) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        for container in self.containers.values():
            container.send(signal.SIGKILL)
            container.process.wait()

    def _report(self, name: str) -> None:
        conditions = [{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now()}]
        status = {
            "capacity": CAPACITY,
            "allocatable": CAPACITY,
            "conditions": conditions,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._server.server_address[1]}},
        }
        self.api.call("PATCH", f"/api/v1/nodes/{name}/status", {"status": status})

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            for name in self._nodes:
                if name not in self.off:
                    self._report(name)

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                for change in self.api.watch("/api/v1/pods"):
                    pod = change["object"]
                    if change["type"] in ("ADDED", "MODIFIED") and pod["spec"].get("nodeName") in self._nodes:
                        self._take(pod)
            except (httpx.HTTPError, RuntimeError):
                self._stop.wait(1.0)

    def _take(self, pod: Document) -> None:
        uid = pod["metadata"]["uid"]
        if pod["spec"]["nodeName"] in self.off:
            return
        if uid not in self._known:
            self._known.add(uid)
            threading.Thread(target=self._run, args=(pod,), daemon=True).start()
        elif (
            "deletionTimestamp" in pod["metadata"] and (container := self.containers.get(uid)) and not container.ending
        ):
            container.ending = True
            grace = pod["metadata"].get("deletionGracePeriodSeconds", 30)
            container.send(signal.SIGTERM)
            timer = threading.Timer(grace, container.send, [signal.SIGKILL])
            timer.daemon = True
            timer.start()

    def _run(self, pod: Document) -> None:
        spec = pod["spec"]["containers"][0]
        if spec["image"] not in self.images:
            self._wait_in_vain(pod, spec["image"])
            return
        uid = pod["metadata"]["uid"]
        self._set_status(pod, "Pending", {"waiting": {"reason": "ContainerCreating"}})
        folders = self._volumes(pod, spec)
        environment = self.environment | self._variables(pod, spec)
        words = [*self.images[spec["image"]], *spec.get("args", [])]
        environment = {name: _mapped(value, folders) for name, value in environment.items()}
        container = Container(
            [_mapped(word, folders) for word in words], environment, str(Path.cwd()), self.directory / f"{uid}.log"
        )
        self.containers[uid] = container
        self._set_status(pod, "Running", {"running": {"startedAt": container.started}})
        code = container.process.wait()
        container.reader.join()
        if pod["spec"]["nodeName"] in self.off:
            return
        code = 128 - code if code < 0 else code
        ended = {"exitCode": code, "reason": "Error" if code else "Completed", "startedAt": container.started}
        self._set_status(pod, "Failed" if code else "Succeeded", {"terminated": ended | {"finishedAt": now()}})
        self._remove_if_deleted(pod)

    def _remove_if_deleted(self, pod: Document) -> None:
        path = self._path(pod)
        while not self._stop.is_set():
            current = self.api.call("GET", path)
            if current.get("metadata", {}).get("uid") != pod["metadata"]["uid"]:
                return
            if "deletionTimestamp" in current["metadata"]:
                self.api.call("DELETE", path, {"gracePeriodSeconds": 0})
                return
            self._stop.wait(1.0)

    def _wait_in_vain(self, pod: Document, image: str) -> None:
        waiting = {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{image}": not found'}
        self._set_status(pod, "Pending", {"waiting": waiting})
        self._remove_if_deleted(pod)

    def _set_status(self, pod: Document, phase: str, state: Document) -> None:
        spec = pod["spec"]["containers"][0]
        is_ready = "running" in state
        container = {"name": spec["name"], "state": state, "ready": is_ready, "restartCount": 0, "image": spec["image"]}
        conditions = [
            {"type": kind, "status": str(is_ready), "lastTransitionTime": now()}
            for kind in ("Ready", "ContainersReady")
        ]
        status = {
            "phase": phase,
            "hostIP": "127.0.0.1",
            "podIP": "192.0.2.1",  # of a range for examples: loopback is refused for the endpoints of a Service
            "conditions": conditions,
            "containerStatuses": [container | {"imageID": "", "started": is_ready}],
        }
        self.api.call("PATCH", f"{self._path(pod)}/status", {"status": status})

    def _path(self, pod: Document) -> str:
        return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"

    def _volumes(self, pod: Document, spec: Document) -> dict[str, str]:
        """The folder of each mount."""
        namespace, folders = pod["metadata"]["namespace"], {}
        for volume in pod["spec"].get("volumes", []):
            folder = self.directory / "volumes" / pod["metadata"]["uid"] / volume["name"]
            folder.mkdir(parents=True, exist_ok=True)
            if "configMap" in volume:
                found: Document = {}
                while "data" not in found:
                    found = self.api.call(
                        "GET", f"/api/v1/namespaces/{namespace}/configmaps/{volume['configMap']['name']}"
                    )
                for name, text in found["data"].items():
                    (folder / name).write_text(text)
            if "persistentVolumeClaim" in volume:
                folder = self.claims[volume["persistentVolumeClaim"]["claimName"]]
            folders |= {m["mountPath"]: str(folder) for m in spec["volumeMounts"] if m["name"] == volume["name"]}
        return folders

    def _variables(self, pod: Document, spec: Document) -> dict[str, str]:
        namespace, values = pod["metadata"]["namespace"], {}

        def secret(name: str) -> dict[str, str]:
            data = self.api.call("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}").get("data", {})
            return {key: base64.b64decode(value).decode() for key, value in data.items()}

        for source in spec.get("envFrom", []):
            values |= secret(source["secretRef"]["name"])
        for variable in spec.get("env", []):
            origin = variable.get("valueFrom", {})
            if "secretKeyRef" in origin:
                found = secret(origin["secretKeyRef"]["name"]).get(origin["secretKeyRef"]["key"])
                values |= {} if found is None else {variable["name"]: found}
            elif "fieldRef" in origin:
                key = re.search(r"\['(.*)'\]", origin["fieldRef"]["fieldPath"])
                values[variable["name"]] = pod["metadata"]["annotations"][key[1]] if key else ""
            else:
                values[variable["name"]] = variable.get("value", "")
        job = pod["metadata"]["labels"].get("batch.kubernetes.io/job-name", "")
        port = str(self._ports.setdefault(job, _free_port()))
        return values | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "POD_NAME": pod["metadata"]["name"]}

    def _serve(self) -> ThreadingHTTPServer:
        kubelet = self

        class Logs(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                options = {name: values[0] for name, values in parse_qs(parts.query).items()}
                _, _, namespace, name, _ = parts.path.split("/")
                pod = kubelet.api.call("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
                container = kubelet.containers.get(pod.get("metadata", {}).get("uid", ""))
                if container is None or pod["spec"]["nodeName"] in kubelet.off:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.end_headers()
                with container.log.open("rb") as log:
                    while True:
                        has_ended = not container.reader.is_alive()
                        while line := log.readline():
                            self.wfile.write(line if options.get("timestamps") == "true" else line.partition(b" ")[2])
                        self.wfile.flush()
                        if has_ended or options.get("follow") != "true" or pod["spec"]["nodeName"] in kubelet.off:
                            return
                        time.sleep(0.1)

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # the API server has closed the connection
                    super().handle()

            def log_message(self, *_: Any) -> None:
                return

        key, certificate = self.directory / "kubelet.key", self.directory / "kubelet.crt"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=kubelet"),
                *("-keyout", str(key), "-out", str(certificate)),
            ],
            check=True,
            capture_output=True,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server = ThreadingHTTPServer(("127.0.0.1", 0), Logs)
        server.daemon_threads = True
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


def _mapped(text: str, folders: dict[str, str]) -> str:
    """A path, or one after a `=`, within a mount, as the path of its folder."""
    for mount, folder in folders.items():
        text = re.sub(rf"^{re.escape(mount)}(?=/|$)", lambda _, folder=folder: folder, text)  # type: ignore[misc]
    return text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
