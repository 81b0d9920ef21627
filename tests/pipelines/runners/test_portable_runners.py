"""The runners of a job server: `portable` on Beam's own in Python, and how `flink` ends a job on its cluster."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import apache_beam as beam
import pytest

from pipelines.contract.errors import InputError
from pipelines.jobs.runner import Job, parse_job, quiet_logs
from pipelines.runners import flink, portable
from pipelines.runners.running import job_of


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("server")
    main = "apache_beam.runners.portability.local_job_service_main"
    port_file = directory / "port"
    command = [sys.executable, "-m", main, f"--port_file={port_file}", f"--staging_dir={directory}"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 600
        while not port_file.exists():
            is_starting = process.poll() is None and time.monotonic() < deadline
            assert is_starting, (directory / "log").read_text()
            time.sleep(0.1)
        yield f"localhost:{port_file.read_text()}"
    finally:
        process.terminate()
        process.wait()


def job_at(directory: Path, *settings: str) -> Job:
    recipe = directory / "recipe.toml"
    recipe.write_text("")
    arguments = [part for setting in settings for part in ("--set", f"preprocessing.{setting}")]
    return parse_job("documents", None, [str(recipe), "--workspace", str(directory), *arguments])


class Write(beam.DoFn):
    """Writes a file, or fails as a worker does."""

    def __init__(self, path: str, fails: bool):
        self._path, self._fails = path, fails

    def process(self, element: int) -> None:
        if self._fails:
            raise InputError(f"{self._path}: holds no text")
        Path(self._path).write_text(str(element))


@pytest.mark.slow
def test_a_job_runs_on_a_job_server_and_a_workers_error_is_its_own(endpoint: str, tmp_path: Path) -> None:
    quiet_logs()
    # Beam's server in Python has no workers by PROCESS; with LOOPBACK they are external ones, in this process.
    settings = ('runner="portable"', f'job_endpoint="{endpoint}"', 'options.environment_type="LOOPBACK"')
    path = tmp_path / "written"

    def construct(fails: bool) -> portable.Construct:
        return lambda pipeline: pipeline | beam.Create([7]) | beam.ParDo(Write(str(path), fails))

    job = job_at(tmp_path, *settings)
    portable.run(job, construct(False), "")
    assert path.read_text() == "7"
    with pytest.raises(InputError, match=r"/written: holds no text$"):
        portable.run(job_at(tmp_path, *settings), construct(True), "")


@pytest.mark.parametrize("runner", ["portable", "flink"])
def test_a_missing_or_silent_job_server_is_one_line(runner: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[preprocessing]\nrunner = "{runner}"\n')
    with pytest.raises(InputError, match=f"runner = '{runner}' needs preprocessing.job_endpoint, the host:port"):
        job_of("documents", None, [str(recipe)])
    with pytest.raises(InputError, match="cannot be reached"):
        portable.run(job_at(tmp_path, f'runner="{runner}"', 'job_endpoint="localhost:1"'), lambda _pipeline: None, "")


def test_flink_needs_the_address_where_a_job_can_be_cancelled(tmp_path: Path) -> None:
    job = job_at(tmp_path, 'runner="flink"', 'job_endpoint="localhost:8099"')
    with pytest.raises(InputError, match=r"preprocessing\.options\.flink_master is not set; runner 'flink' needs"):
        flink.require_settings(job)
    flink.require_settings(job_at(tmp_path, 'job_endpoint="localhost:8099"', 'options.flink_master="head:8081"'))


@pytest.mark.parametrize("master", ["127.0.0.1:1", "http://127.0.0.1:1", "head:port"])
def test_a_silent_flink_is_one_line_before_anything_is_submitted(master: str, tmp_path: Path) -> None:
    job = job_at(tmp_path, 'runner="flink"', 'job_endpoint="localhost:1"', f'options.flink_master="{master}"')
    with pytest.raises(
        InputError, match=r"flink_master = 'http://.*': Flink's REST interface does not answer"
    ) as caught:
        flink.run(job, lambda _pipeline: pytest.fail("a pipeline was built"), "")
    assert "\n" not in str(caught.value)


def test_a_job_is_ended_on_flink_and_no_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flink, "_CANCEL_SECONDS", 60.0)
    states = {"b": ["another", "RUNNING"]}
    requests: list[str] = []
    looks = 0

    class Rest(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal looks
            looks += 1
            if looks == 2:
                # The job server submits a job after it was cancelled there.
                states["a"] = ["ours", "RUNNING"]
            listed = [{"jid": jid, "name": name, "state": state} for jid, (name, state) in states.items()]
            self.answer({"jobs": listed})
            if looks > 1 and states["a"][1] == "CANCELLING":
                states["a"][1] = "CANCELED"

        def do_PATCH(self) -> None:
            requests.append(self.path)
            states["a"][1] = "CANCELLING"
            self.answer({})

        def answer(self, value: object) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *_: object) -> None:
            """Keep requests off the test's output."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Rest) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        flink.cancel("documents", "ours", f"http://127.0.0.1:{server.server_address[1]}")
        told = capsys.readouterr().err
        monkeypatch.setattr(flink, "_CANCEL_SECONDS", 0.2)
        flink.cancel("documents", "never submitted", f"http://127.0.0.1:{server.server_address[1]}")
        assert "WARNING: the job never submitted may still run on" in capsys.readouterr().err
        server.shutdown()
    assert requests == ["/v1/jobs/a?mode=cancel"]
    assert states == {"a": ["ours", "CANCELED"], "b": ["another", "RUNNING"]}
    assert told == "documents: the job ours has ended on the cluster\n"
    flink.cancel("documents", "ours", "http://127.0.0.1:1")
    assert "WARNING: the job ours may still run on http://127.0.0.1:1" in capsys.readouterr().err
