"""The command line of a Beam job, its lock, its progress, and its log."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.commands.command_line import CommandParser
from pipelines.commands.recipe_arguments import add_recipe_arguments, add_restart_argument, recipe_from_arguments
from pipelines.contract import storage
from pipelines.contract.manifest import Manifest, StageKey, read_manifest
from pipelines.contract.recipe import Recipe, RunConfig
from pipelines.contract.workspace import OUTSIDE_INPUTS
from pipelines.jobs.beam_options import arguments_of_recipe, pipeline_options
from pipelines.jobs.forked_workers import ForkedWorkers
from pipelines.results.builds import finish_exchange, has_leftovers
from pipelines.results.kept import kept_directories
from pipelines.results.locks import consumed, workspace_lock
from pipelines.results.marks import is_open, require_ours
from pipelines.settings.preprocessing import RUNNER_NAMES, PreprocessingConfig

_FIRST_PROGRESS_SECONDS = 2.0
_PROGRESS_SECONDS = 5.0


class Job(NamedTuple):
    """The parsed command line of a job.

    settings: `[preprocessing]`, with the runner that the command line names.
    options: Beam's, from the recipe and from the command line, which overrides.
    beam_runner: Beam's name of a runner, such as DirectRunner, that the command line gives in place of one of ours.
    workers: processes of the local runner; 0 means one per core.
    forked: processes that wait to become workers of the local runner.
    """

    stage: str
    recipe: Recipe
    workspace: str
    settings: PreprocessingConfig
    options: PipelineOptions
    workers: int
    beam_runner: str | None = None
    restart: str | None = None
    forked: ForkedWorkers | None = None

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


def parse_job(stage: str, description: str | None, argv: list[str] | None, verb: str | None = None) -> Job:
    """Parse the command line that all three jobs share: recipe, `--set`, `--workspace`; the rest goes to Beam.

    Args:
        stage: what the job builds.
        description: of the command, for its help.
        argv: the arguments; None means those of this process.
        verb: name of the command, if it is not that of the stage.
    """
    parser = CommandParser(
        prog=f"clozeworks {verb or stage}",
        description=description,
        epilog=f"example: clozeworks {verb or stage} flows/recipes/demo.toml --set run.workers=2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_recipe_arguments(parser)
    add_restart_argument(parser, "rebuild the stage even if it is complete; the old result is replaced at the end")
    parser.add_argument(
        "--runner", help=f"{', '.join(RUNNER_NAMES)}, or a runner of Beam; overrides preprocessing.runner"
    )
    arguments, beam_arguments = parser.parse_known_args(argv)
    is_ours = arguments.runner in RUNNER_NAMES
    if is_ours:
        arguments.overrides.append(f'preprocessing.runner="{arguments.runner}"')
    elif arguments.runner is not None:
        beam_arguments.append(f"--runner={arguments.runner}")
    recipe = recipe_from_arguments(arguments)
    run, settings = recipe.section("run", RunConfig), recipe.section("preprocessing", PreprocessingConfig)
    options = pipeline_options([*arguments_of_recipe(recipe.path, settings.options), *beam_arguments])
    beam_runner = None if is_ours else arguments.runner
    return Job(stage, recipe, run.workspace, settings, options, run.workers, beam_runner, arguments.restart)


def limit_worker_threads() -> None:
    """Use one thread per worker, because the runner already uses all cores; call it in a DoFn's `setup`."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(2)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


class Progress:
    """Progress of a job, counted from the files in its directory, with any runner.

    Prints a line (`documents: 5 of 16 shards after 4 s`) when the count changes, at most every five seconds, and a last
    one when the job has completed.
    """

    def __init__(self, stage: str, directory: str, steps: list[tuple[str, str, int]]):
        """`directory`: of the result; `steps`: (directory, label of its files, expected number of files)."""
        self._stage, self._directory = stage, directory
        self._steps = steps
        self._finished = threading.Event()
        self._started = 0.0
        self._last_line = ""

    @contextmanager
    def shown(self) -> Iterator[None]:
        self._started = time.monotonic()
        thread = threading.Thread(target=self._report, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._finished.set()
            thread.join()
        # A runner may have returned early (a dry run). A complete build has written every file, now under other names.
        if not is_open(self._directory):
            _, label, total = self._steps[-1]
            self._print(total, total, label)

    def _report(self) -> None:
        step, most = 0, 0
        while not self._finished.wait(_PROGRESS_SECONDS if self._last_line else _FIRST_PROGRESS_SECONDS):
            # A completed step is not counted again: its files may be deleted.
            while step < len(self._steps) - 1 and _count_files(self._steps[step][0]) >= self._steps[step][2]:
                step, most = step + 1, 0
            directory, label, total = self._steps[step]
            # Scratch files are deleted at the end, but the count must not fall.
            most = max(most, min(_count_files(directory), total))
            self._print(most, total, label)

    def _print(self, count: int, total: int, label: str) -> None:
        line = f"{self._stage}: {count} of {total} {label}"
        if line != self._last_line:
            print(f"{line} after {time.monotonic() - self._started:.0f} s", file=sys.stderr, flush=True)
            self._last_line = line


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
