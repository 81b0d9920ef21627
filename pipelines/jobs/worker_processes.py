"""The local Beam runner's worker processes: started by this module, reachable on loopback only, and watched.

Beam 2.77 starts its workers through a shell, opens their channels on all interfaces, and waits indefinitely for an
answer of a killed one. Here each worker has a thread that waits for its process. When the first one ends unexpectedly,
the others are killed and every open request is answered with that error, so the run ends as well.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import grpc
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.portability.api import (
    beam_artifact_api_pb2_grpc,
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)
from apache_beam.runners.portability import artifact_service
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from apache_beam.runners.worker import data_plane
from apache_beam.transforms.environments import Environment, python_sdk_capabilities
from apache_beam.utils import thread_pool_executor
from google.protobuf import json_format, text_format

from pipelines.commands.lifeline import LIFELINE_VARIABLE
from pipelines.contract.errors import InputError
from pipelines.jobs.forked_workers import ForkedWorker, ForkedWorkers

LOOPBACK = "127.0.0.1"

_URN = "clozeworks:env:local_worker:v1"
_LEAVE_SECONDS = 20.0
"""Time for a worker to exit by itself once the run is over."""
_SERVER_OPTIONS = [
    # As in Beam's own servers: batches of any size, and unlimited pings.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
]


WorkerProcess: TypeAlias = "subprocess.Popen[bytes] | ForkedWorker"


class WorkerDiedError(InputError):
    """A worker process of the local runner ended before the run did; the message gives the cause and the remedy."""


class Crew:
    """The worker processes of one run of a pipeline."""

    def __init__(
        self,
        woken: threading.Event,
        environment: Mapping[str, str] | None = None,
        forked: ForkedWorkers | None = None,
    ):
        """`woken` is set when the first worker has died; `environment` is added to that of the workers; those that
        are `forked` are used before any is started."""
        self.death: str | None = None
        self._woken = woken
        self._environment = dict(environment or {})
        self._forked = forked
        self._lock = threading.Lock()
        self._is_over = False
        self._processes: list[WorkerProcess] = []
        self._connections: list[_Connection] = []

    def start(self, environment: Mapping[str, str], connection: _Connection) -> WorkerProcess:
        """Start one worker and a thread that waits for its end."""
        everything = {**os.environ, **self._environment, **environment, LIFELINE_VARIABLE: str(os.getpid())}
        with self._lock:
            process = self._process(everything)
            self._processes.append(process)
            self._connections.append(connection)
        if self._is_over:
            process.kill()
        watcher = threading.Thread(target=self._watch, args=(process, connection), name="worker", daemon=True)
        watcher.start()
        return process

    def _process(self, environment: Mapping[str, str]) -> WorkerProcess:
        forked = self._forked.take() if self._forked is not None else None
        if forked is None:
            return subprocess.Popen([sys.executable, "-m", "pipelines.jobs.local_worker"], env=environment)
        forked.begin(environment)
        return forked

    def end(self) -> None:
        """Kill the remaining workers; files being written are not under their final names yet."""
        with self._lock:
            self._is_over = True
            for process in self._processes:
                if process.poll() is None:
                    process.kill()

    def _watch(self, process: WorkerProcess, connection: _Connection) -> None:
        returncode = process.wait()
        with self._lock:
            if self._is_over or connection.is_closing:
                return
            self._is_over = True
            self.death = f"worker process {process.pid} {_ending(returncode)}"
            connections = list(self._connections)
        self._woken.set()
        self.end()
        for other in connections:
            other.answer_all(self.death)


def _ending(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    name = signal.Signals(-returncode).name
    if -returncode == signal.SIGKILL:
        return f"was killed by {name}, most likely because memory ran out (lower run.workers)"
    return f"was killed by {name}"


_crews: dict[bytes, Crew] = {}
_crew_numbers = itertools.count()


@Environment.register_urn(_URN, bytes)
class LocalWorkers(Environment):
    """Beam environment whose functions run in the processes of a crew."""

    def __init__(
        self,
        key: bytes,
        capabilities: Iterable[str] = (),
        artifacts: Iterable[Any] = (),
        resource_hints: Mapping[str, bytes] | None = None,
    ):
        super().__init__(capabilities, artifacts, resource_hints)
        self._key = key

    def to_runner_api_parameter(self, _context: Any) -> tuple[str, bytes]:
        return _URN, self._key

    @staticmethod
    def from_runner_api_parameter(
        payload: bytes,
        capabilities: Iterable[str],
        artifacts: Iterable[Any],
        resource_hints: Mapping[str, bytes],
        _context: Any,
    ) -> LocalWorkers:
        return LocalWorkers(payload, capabilities, artifacts, resource_hints)


@contextlib.contextmanager
def environment_of(crew: Crew) -> Iterator[LocalWorkers]:
    """Beam's environment for a runner whose workers belong to this crew; the block ends with killing them."""
    key = str(next(_crew_numbers)).encode()
    _crews[key] = crew
    # Beam has no setting for the interface. Its class is looked up by name when the first worker is started.
    worker_handlers.GrpcServer = _LoopbackServer
    try:
        yield LocalWorkers(key, capabilities=python_sdk_capabilities())
    finally:
        crew.end()
        del _crews[key]


class _Connection(worker_handlers.ControlConnection):
    """Requests to one worker. Once it has ended they are answered at once, because nothing else would."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closing = False
        self._last_answer: str | None = None
        self._read_thread.daemon = True

    def _read(self) -> None:
        # The stream breaks with its worker; the thread that waits for the process reports how it ended.
        with contextlib.suppress(grpc.RpcError):
            super()._read()

    def push(self, request: Any) -> Any:
        future = super().push(request)
        if future is not None and self._last_answer is not None:
            self._answer(future, self._last_answer)
        return future

    def close(self) -> None:
        self.is_closing = True
        super().close()

    def answer_all(self, problem: str) -> None:
        self._last_answer = problem
        for future in list(self._futures_by_id.values()):
            self._answer(future, problem)

    @staticmethod
    def _answer(future: Any, problem: str) -> None:
        future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=future.instruction_id, error=problem))


class _DataChannel(data_plane._GrpcDataChannel):
    """Elements to and from one worker."""

    def __init__(self) -> None:
        super().__init__(worker_handlers.DATA_BUFFER_TIME_LIMIT_MS)

    def _read_inputs(self, elements_iterator: Any) -> None:
        # Beam keeps the error for the consumer of the elements, and raises it in its thread as well.
        with contextlib.suppress(grpc.RpcError):
            super()._read_inputs(elements_iterator)

    def close(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            super().close()


class _LoopbackServer(worker_handlers.GrpcServer):
    """What Beam's GrpcServer serves, on the loopback interface."""

    def __init__(self, state: Any, provision_info: Any, worker_manager: Any) -> None:
        # Not super().__init__(): it opens its ports on all interfaces.
        self.state, self.provision_info = state, provision_info
        self.control_server, self.control_port = _server()
        self.control_address = f"{LOOPBACK}:{self.control_port}"
        self.data_server, self.data_port = _server()
        self.state_server, self.state_port = _server()
        self.logging_server, self.logging_port = _server()

        self.control_handler = worker_handlers.BeamFnControlServicer(worker_manager)
        self.control_handler._connections_by_worker_id = collections.defaultdict(_Connection)
        beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(self.control_handler, self.control_server)
        if provision_info and provision_info.provision_info:
            provision = worker_handlers.BasicProvisionService(provision_info.provision_info, worker_manager)
            beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(provision, self.control_server)
        beam_artifact_api_pb2_grpc.add_ArtifactRetrievalServiceServicer_to_server(
            artifact_service.ArtifactRetrievalService(file_reader=_open_as_it_is), self.control_server
        )
        self.data_plane_handler = data_plane.BeamFnDataServicer(worker_handlers.DATA_BUFFER_TIME_LIMIT_MS)
        self.data_plane_handler._connections_by_worker_id = collections.defaultdict(_DataChannel)
        beam_fn_api_pb2_grpc.add_BeamFnDataServicer_to_server(self.data_plane_handler, self.data_server)
        beam_fn_api_pb2_grpc.add_BeamFnStateServicer_to_server(
            worker_handlers.GrpcStateServicer(state), self.state_server
        )
        beam_fn_api_pb2_grpc.add_BeamFnLoggingServicer_to_server(
            worker_handlers.BasicLoggingService(), self.logging_server
        )
        for server in (self.logging_server, self.state_server, self.data_server, self.control_server):
            server.start()


def _server() -> tuple[grpc.Server, int]:
    server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=_SERVER_OPTIONS)
    return server, server.add_insecure_port(f"{LOOPBACK}:0")


def _open_as_it_is(path: str) -> Any:
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


@worker_handlers.WorkerHandler.register_environment(_URN, bytes)
class _WorkerHandler(worker_handlers.GrpcWorkerHandler):
    """Beam's handle of one worker process."""

    def __init__(self, key: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)
        self._crew = _crews[key]
        self._process: WorkerProcess | None = None

    def host_from_worker(self) -> str:
        return LOOPBACK

    def start_worker(self) -> None:
        control = endpoints_pb2.ApiServiceDescriptor(url=self.control_address)
        environment = {
            "WORKER_ID": self.worker_id,
            "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(control),
            "PIPELINE_OPTIONS": json_format.MessageToJson(self.provision_info.provision_info.pipeline_options),
        }
        self._process = self._crew.start(environment, self.control_conn)

    def stop_worker(self) -> None:
        if self._process is None:
            return  # it could not be started, which start_worker has raised
        try:
            self._process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
