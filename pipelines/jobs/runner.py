"""Run a Beam pipeline where the options say, and on this machine with all cores where they say nothing."""

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
from pipelines.contract.workspace import CORPUS_INPUT
from pipelines.jobs.beam_errors import first_cause, shown_of
from pipelines.jobs.scratch import scratch_directory
from pipelines.jobs.worker_processes import Crew, WorkerDiedError, environment_of
from pipelines.results.builds import finish_exchange, has_leftovers
from pipelines.results.kept import kept_directories
from pipelines.results.locks import consumed, workspace_lock
from pipelines.results.marks import is_open, require_ours

MOST_RETRIES = 3
"""How often local work is tried again after its first failure; finished units are not done again."""

_RETRY_SECONDS = 2.0
"""Before work that failed storage has stopped is tried again; longer by this each time."""
_ABANDON_SECONDS = 20.0
"""What Beam's own threads get to end once a worker has died."""
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
    """What a job's command line asks for. Without `--runner` it runs on this machine with `workers` processes."""

    recipe: Recipe
    workspace: str
    options: PipelineOptions
    names_runner: bool
    workers: int
    restart: str | None = None

    @contextmanager
    def build_of(self, key: StageKey, directory: str) -> Iterator[bool]:
        """Hold a stage's lock while it is built; the value of the block is False where nothing is to be built.

        A stage that is complete is only looked at, so that a workspace may be read-only.

        Raises:
            InputError: another process builds the stage, a newer release wrote it, or it is not ours to replace.
        """
        if not has_leftovers(directory) and self._is_done(key, directory):
            yield False
            return
        stages = [name for name in key.inputs if name != CORPUS_INPUT]
        with workspace_lock(self.workspace, key.stage), consumed(self.workspace, stages):
            finish_exchange(directory)
            if self._is_done(key, directory):
                yield False
                return
            require_ours(directory, key.stage)
            if read_manifest(directory) is not None:
                reason = key.difference(directory) or "--restart"
                print(
                    f"{key.stage}: {reason}; building anew, the result in {directory} stays until the new one is "
                    "complete"
                )
            kept = set(kept_directories(directory))
            yield True
            for other in sorted(set(kept_directories(directory)) - kept):
                print(f"{key.stage}: what a person added or edited in the result before is kept in {other}")

    def show_summary(self, stage: str, directory: str, summary: Callable[[Manifest], Iterable[str]]) -> None:
        """Print a stage's closing lines; where the runner left before it was complete (a dry run), say that instead."""
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
    """Parse the command line that all three jobs share: recipe, `--set`, `--workspace`; the rest is Beam's."""
    parser = CommandParser(
        prog=f"clozeworks {stage}",
        description=description,
        epilog=f"example: clozeworks {stage} flows/recipes/demo.toml --set run.workers=2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_recipe_arguments(parser)
    add_restart_argument(parser, "build the stage anew even where it is complete; replaces it at the end")
    arguments, beam_arguments = parser.parse_known_args(argv)
    recipe = recipe_from_arguments(arguments)
    names_runner = any(argument.split("=", 1)[0] == "--runner" for argument in beam_arguments)
    run = recipe.section("run", RunConfig)
    return Job(recipe, run.workspace, pipeline_options(beam_arguments), names_runner, run.workers, arguments.restart)


def pipeline_options(arguments: list[str]) -> PipelineOptions:
    """Beam options from what a command did not take itself.

    Raises:
        InputError: an argument that neither the command nor Beam knows, or that Beam cannot read.
    """
    logging.getLogger("apache_beam.options.pipeline_options").setLevel(logging.ERROR)
    said = io.StringIO()
    try:
        # Beam's parser would print all its options, and leave.
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
    """Build a pipeline and run it to its end, showing progress meanwhile.

    On this machine the whole run is repeated, `MOST_RETRIES` times at most, when a worker process has died or storage
    has failed in a way that often passes; what is finished by then is found in the stage's directory and kept.

    Raises:
        InputError: a worker met a mistake in what the person gave us.
        OSError: a worker could not read or write something.
        WorkerDiedError: worker processes of this machine died again and again.
        RuntimeError: the runner reports another end than DONE; the message holds what it says.
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
                f"{error}; trying again ({retry + 1} of {MOST_RETRIES}), what is finished is kept",
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
    """One run with worker processes; the end of one of them ends the run."""
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
        # A thread of its own: wherever Beam may still wait for a worker that is gone, this one does not.
        runner = threading.Thread(target=work, name="beam", daemon=True)
        runner.start()
        woken.wait()
        runner.join(_ABANDON_SECONDS if crew.death else None)
    if crew.death is not None:
        raise WorkerDiedError(crew.death)
    if problems:
        raise problems[0]


def _run_to_end(pipeline: beam.Pipeline, construct: Callable[[beam.Pipeline], Any]) -> None:
    """Run a pipeline and raise what stopped it, as itself where Beam only quotes it."""
    construct(pipeline)
    try:
        state = pipeline.run().wait_until_finish()
    except (InputError, RuntimeError) as error:
        # In this process an InputError arrives as itself, with the step's name added.
        if (cause := first_cause(shown_of(error))) is not None:
            raise cause from error
        raise
    if state is not None and state != "DONE":
        raise RuntimeError(f"the pipeline ended as {state}; see the runner's log")


def limit_worker_threads() -> None:
    """To be called in a DoFn's `setup`: one thread a worker, for the runner already uses all cores."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(2)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


class Progress:
    """Progress of a job, read off the files that appear in its directory; it works with any runner.

    Prints a line (`documents: 5 of 16 shards after 4 s`) when the count has changed, at most every five seconds.
    """

    def __init__(self, stage: str, steps: list[tuple[str, str, int]]):
        """`steps`: (directory, what to call its files, how many there will be)."""
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
            # A step that was complete stays behind us, for its files may be cleared away.
            while step < len(self._steps) - 1 and _count_files(self._steps[step][0]) >= self._steps[step][2]:
                step, most = step + 1, 0
            directory, label, total = self._steps[step]
            # Scratch files are cleared away at the end; a count never falls.
            most = max(most, min(_count_files(directory), total))
            line = f"{self._stage}: {most} of {total} {label}"
            if line != last:
                print(f"{line} after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
                last = line


def _count_files(directory: str) -> int:
    return sum(name.endswith(".arrow") and "/" not in name for name in storage.list_files(directory))


def quiet_logs() -> None:
    """Keep the routine messages of Beam and its workers off a person's terminal; warnings stay."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", handlers=[handler], force=True
    )
    # It warns that several workers want another running mode; they get the environment of that mode from us.
    # Of a run that fails it logs a traceback, as the others below.
    logging.getLogger("apache_beam.runners.portability.fn_api_runner.fn_runner").setLevel(logging.CRITICAL)
    # Each logs the traceback of an exception that whoever runs the pipeline gets as well, and says once.
    for name in ("common", "worker.sdk_worker", "worker.data_plane"):
        logging.getLogger(f"apache_beam.runners.{name}").setLevel(logging.CRITICAL)
