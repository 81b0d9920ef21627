"""Run a Beam pipeline with the runner that the options name; without one, on this machine with all cores."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, WorkerOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines.commands.command_line import CommandParser
from pipelines.commands.recipe_arguments import add_recipe_arguments, add_restart_argument, recipe_from_arguments
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, read_manifest
from pipelines.contract.recipe import Recipe, RunConfig
from pipelines.contract.workspace import OUTSIDE_INPUTS
from pipelines.jobs.beam_errors import first_cause, shown_of
from pipelines.jobs.scratch import scratch_directory
from pipelines.jobs.worker_processes import Crew, WorkerDiedError, environment_of
from pipelines.results.builds import finish_exchange, has_leftovers
from pipelines.results.kept import kept_directories
from pipelines.results.locks import consumed, workspace_lock
from pipelines.results.marks import is_open, require_ours

MOST_RETRIES = 3
"""How often local work is retried after its first failure; finished units are not repeated."""

_RETRY_SECONDS = 2.0
"""Pause before a retry after a storage failure; each retry waits longer by this."""
_ABANDON_SECONDS = 20.0
"""Time for Beam's own threads to end once a worker has died."""
_TRANSIENT = frozenset(
    {
        errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.EREMOTEIO, errno.EPIPE, errno.ETIMEDOUT,
        errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH,
        errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET,
    }
)  # fmt: skip
"""Failures of storage or network that often pass; a full disk or a missing permission does not."""
_FIRST_PROGRESS_SECONDS = 2.0
_PROGRESS_SECONDS = 5.0


class Job(NamedTuple):
    """The parsed command line of a job. Without `--runner` it runs on this machine with `workers` processes."""

    recipe: Recipe
    workspace: str
    options: PipelineOptions
    names_runner: bool
    workers: int
    restart: str | None = None

    @contextmanager
    def build_of(self, key: StageKey, directory: str) -> Iterator[bool]:
        """Hold a stage's lock while it is built; yields False if there is nothing to build.

        A complete stage is only read, so a workspace may be read-only.

        Raises:
            InputError: another process builds the stage, a newer release wrote it, or it must not be replaced.
        """
        if not has_leftovers(directory) and self._is_done(key, directory):
            yield False
            return
        stages = [name for name in key.inputs if name not in OUTSIDE_INPUTS]
        with workspace_lock(self.workspace, key.stage), consumed(self.workspace, stages):
            finish_exchange(directory)
            if self._is_done(key, directory):
                yield False
                return
            require_ours(directory, key.stage)
            if read_manifest(directory) is not None:
                reason = key.difference(directory) or "--restart"
                print(
                    f"{key.stage}: {reason}; rebuilding, the result in {directory} stays until the new one is complete"
                )
            kept = set(kept_directories(directory))
            yield True
            for other in sorted(set(kept_directories(directory)) - kept):
                print(f"{key.stage}: files that were added or edited in the previous result are kept in {other}")

    def show_summary(self, stage: str, directory: str, summary: Callable[[Manifest], Iterable[str]]) -> None:
        """Print a stage's closing lines, or that it is not complete yet if the runner returned early (a dry run)."""
        manifest = None if is_open(directory) else read_manifest(directory)
        lines = [f"{stage}: handed to the runner, not complete yet"] if manifest is None else summary(manifest)
        for line in lines:
            print(line, flush=True)

    def _is_done(self, key: StageKey, directory: str) -> bool:
        is_done = self.restart is None and key.difference(directory) is None
        if is_done:
            print(f"{key.stage}: complete and unchanged in {directory}")
        return is_done


def parse_job(stage: str, description: str | None, argv: list[str] | None) -> Job:
    """Parse the command line that all three jobs share: recipe, `--set`, `--workspace`; the rest goes to Beam."""
    parser = CommandParser(
        prog=f"clozeworks {stage}",
        description=description,
        epilog=f"example: clozeworks {stage} flows/recipes/demo.toml --set run.workers=2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_recipe_arguments(parser)
    add_restart_argument(parser, "rebuild the stage even if it is complete; the old result is replaced at the end")
    arguments, beam_arguments = parser.parse_known_args(argv)
    recipe = recipe_from_arguments(arguments)
    names_runner = any(argument.split("=", 1)[0] == "--runner" for argument in beam_arguments)
    run = recipe.section("run", RunConfig)
    return Job(recipe, run.workspace, pipeline_options(beam_arguments), names_runner, run.workers, arguments.restart)


def pipeline_options(arguments: list[str]) -> PipelineOptions:
    """Beam options from the arguments that a command does not know.

    Raises:
        InputError: neither the command nor Beam knows an argument, or Beam cannot parse it.
    """
    logging.getLogger("apache_beam.options.pipeline_options").setLevel(logging.ERROR)
    said = io.StringIO()
    try:
        # Beam's parser would print all its options, and exit.
        with redirect_stderr(said):
            options = PipelineOptions(arguments)
            known = options.get_all_options(drop_default=False)
    except SystemExit as error:
        reason = (said.getvalue().strip().splitlines() or ["wrong options"])[-1].rpartition("error: ")[2]
        raise InputError(f"Beam's options: {reason}; see Beam's documentation of its pipeline options") from error
    for argument in arguments:
        name = argument.split("=", 1)[0].lstrip("-")
        if argument.startswith("--") and name not in known and name.removeprefix("no_") not in known:
            raise InputError(f"{argument}: neither this command nor Beam has this option; see --help")
    return options


def run_pipeline(job: Job, construct: Callable[[beam.Pipeline], Any], progress: Progress | None = None) -> None:
    """Build a pipeline and run it to its end, showing progress.

    On this machine the complete run is repeated, `MOST_RETRIES` times at most, when a worker process has died or
    storage has failed with a transient error; units finished so far are kept.

    Raises:
        InputError: a worker found a user error.
        OSError: a worker could not read or write a file.
        WorkerDiedError: worker processes of this machine died repeatedly.
        RuntimeError: the pipeline ended in another state than DONE, which the message names.
    """
    quiet_logs()
    with scratch_directory() as scratch, progress.shown() if progress else nullcontext():
        if job.names_runner:
            _run_to_end(beam.Pipeline(options=job.options), construct)
        else:
            _run_on_this_machine(job, construct, scratch)


def _run_on_this_machine(job: Job, construct: Callable[[beam.Pipeline], Any], scratch: str) -> None:
    workers = job.workers or (len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
    job.options.view_as(DirectOptions).direct_num_workers = workers
    job.options.view_as(WorkerOptions).default_sdk_harness_log_level = "WARNING"
    for retry in range(MOST_RETRIES + 1):
        try:
            if workers == 1:
                _run_to_end(beam.Pipeline(runner=FnApiRunner(), options=job.options), construct)
            else:
                _run_with_crew(job, construct, scratch)
        except (WorkerDiedError, OSError) as error:
            if retry == MOST_RETRIES or not _is_worth_retrying(error):
                raise
            print(
                f"{error}; retrying ({retry + 1} of {MOST_RETRIES}), finished work is kept",
                file=sys.stderr,
                flush=True,
            )
            if isinstance(error, OSError):
                time.sleep(_RETRY_SECONDS * (retry + 1))
        else:
            return


def _is_worth_retrying(error: WorkerDiedError | OSError) -> bool:
    return isinstance(error, WorkerDiedError) or error.errno in _TRANSIENT


def _run_with_crew(job: Job, construct: Callable[[beam.Pipeline], Any], scratch: str) -> None:
    """One run with worker processes; it ends when one of them dies."""
    woken = threading.Event()
    problems: list[BaseException] = []
    crew = Crew(woken, {"TMPDIR": scratch})

    def work() -> None:
        try:
            _run_to_end(beam.Pipeline(runner=FnApiRunner(environment), options=job.options), construct)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            problems.append(error)
        finally:
            woken.set()

    with environment_of(crew) as environment:
        # In a separate thread: Beam may keep waiting for a dead worker, this thread must not.
        runner = threading.Thread(target=work, name="beam", daemon=True)
        runner.start()
        woken.wait()
        runner.join(_ABANDON_SECONDS if crew.death else None)
    if crew.death is not None:
        raise WorkerDiedError(crew.death)
    if problems:
        raise problems[0]


def _run_to_end(pipeline: beam.Pipeline, construct: Callable[[beam.Pipeline], Any]) -> None:
    """Run a pipeline and raise what stopped it, as the original exception if Beam only quotes it."""
    construct(pipeline)
    try:
        state = pipeline.run().wait_until_finish()
    except (InputError, RuntimeError) as error:
        # Raised in this process, an InputError keeps its type, with the step's name added.
        if (cause := first_cause(shown_of(error))) is not None:
            raise cause from error
        raise
    if state is not None and state != "DONE":
        raise RuntimeError(f"the pipeline ended as {state}; see the runner's log")


def limit_worker_threads() -> None:
    """Use one thread per worker, because the runner already uses all cores; call it in a DoFn's `setup`."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(2)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


class Progress:
    """Progress of a job, counted from the files in its directory, with any runner.

    Prints a line (`documents: 5 of 16 shards after 4 s`) when the count changes, at most every five seconds.
    """

    def __init__(self, stage: str, steps: list[tuple[str, str, int]]):
        """`steps`: (directory, label of its files, expected number of files)."""
        self._stage = stage
        self._steps = steps
        self._finished = threading.Event()

    @contextmanager
    def shown(self) -> Iterator[None]:
        thread = threading.Thread(target=self._report, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._finished.set()
            thread.join()

    def _report(self) -> None:
        started, step, most, last = time.monotonic(), 0, 0, ""
        while not self._finished.wait(_FIRST_PROGRESS_SECONDS if not last else _PROGRESS_SECONDS):
            # A completed step is not counted again: its files may be deleted.
            while step < len(self._steps) - 1 and _count_files(self._steps[step][0]) >= self._steps[step][2]:
                step, most = step + 1, 0
            directory, label, total = self._steps[step]
            # Scratch files are deleted at the end, but the count must not fall.
            most = max(most, min(_count_files(directory), total))
            line = f"{self._stage}: {most} of {total} {label}"
            if line != last:
                print(f"{line} after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
                last = line


def _count_files(directory: str) -> int:
    return sum(name.endswith(".arrow") and "/" not in name for name in storage.list_files(directory))


def quiet_logs() -> None:
    """Keep routine messages of Beam and its workers off the terminal; warnings stay."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", handlers=[handler], force=True
    )
    # Warns that several workers need another running mode, whose environment the crew provides, and logs the traceback
    # of a failed run, as those below.
    logging.getLogger("apache_beam.runners.portability.fn_api_runner.fn_runner").setLevel(logging.CRITICAL)
    # Each logs the traceback of an exception that the caller gets as well, and reports once.
    for name in ("common", "worker.sdk_worker", "worker.data_plane"):
        logging.getLogger(f"apache_beam.runners.{name}").setLevel(logging.CRITICAL)
