"""Builds the stages of many runs, each distinct one once.

    stages/examples-3f21.../     a workspace of this stage alone: its inputs are links, it builds `examples`
    runs/no-nsp/12345/           a workspace of one run: documents, vocabulary, examples and pretraining are links

A stage is identified by its key, as in any workspace: settings and digests of its inputs. So two runs share all that
comes before their first difference, and a study that is started again builds what is missing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from flows.parameters.whole_recipe import WholeRecipe
from flows.running.launch import run_command, run_requeued
from flows.running.plan import Stage
from flows.running.timings import earlier_seconds, record_seconds
from pipelines.contract.errors import InputError
from pipelines.contract.workspace import DOCUMENTS, EXAMPLES, PRETRAINING, VOCABULARY

CHAIN = (DOCUMENTS, VOCABULARY, EXAMPLES, PRETRAINING)
"""The stages that runs share; fine-tuning reads the last one and is a run's own."""
_DIGEST_CHARACTERS = 16

Say = Callable[[str], None]
Opened = Callable[[str], tuple[WholeRecipe, list[Stage]]]
"""A workspace to the recipe there and its stages, those of CHAIN first."""


class SharedStages:
    """The directory `stages/` of a study."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._locks: dict[str, threading.Lock] = {}
        self._failed: dict[str, str] = {}
        self._guard = threading.Lock()

    def build(self, opened: Opened, run_directory: str, environment: Mapping[str, str], say: Say) -> None:
        """Build or find the chain of one run, and link its stages into the run's workspace.

        Args:
            opened: recipe and stages of the run, for a workspace.
            run_directory: the run's workspace.
            environment: further variables of the stages' processes, such as where they log.
            say: prints a line.

        Raises:
            InputError: a stage refused its input, now or for another run of this study.
            StageError: a stage failed.
        """
        os.makedirs(run_directory, exist_ok=True)
        # A run that fine-tunes an encoder at hand has none of them.
        planned = {stage.name for stage in opened(run_directory)[1]}
        for name in filter(planned.__contains__, CHAIN):
            # The key is that of the run's own workspace, where the stage's inputs are linked already.
            _, stages = opened(run_directory)
            digest = _stage(stages, name).key_digest()[:_DIGEST_CHARACTERS]
            workspace = os.path.join(self._directory, f"{name}-{digest}")
            with self._lock_of(workspace):
                if reason := self._failed.get(workspace):
                    raise InputError(f"{name} failed for another run: {reason}")
                try:
                    self._build_stage(name, opened, workspace, run_directory, environment, say)
                except (InputError, RuntimeError) as error:
                    self._failed[workspace] = str(error).partition("\n")[0]
                    raise
            _link(os.path.join(workspace, name), os.path.join(run_directory, name))

    def _lock_of(self, workspace: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(workspace, threading.Lock())

    def _build_stage(
        self,
        name: str,
        opened: Opened,
        workspace: str,
        run_directory: str,
        environment: Mapping[str, str],
        say: Say,
    ) -> None:
        os.makedirs(workspace, exist_ok=True)
        for earlier in CHAIN[: CHAIN.index(name)]:
            _link(os.path.realpath(os.path.join(run_directory, earlier)), os.path.join(workspace, earlier))
        whole, stages = opened(workspace)
        build_stage(whole, _stage(stages, name), environment, say)


def build_stage(whole: WholeRecipe, stage: Stage, environment: Mapping[str, str], say: Say) -> None:
    """Run a stage's command unless it is complete, and record how long it took.

    Raises:
        InputError: the stage refused its input.
        StageError: it failed.
    """
    if stage.difference() is None:
        say(f"{stage.name}: complete")
        return
    began = time.monotonic()
    variables = {**environment, **stage.environment()}
    run_requeued(lambda: run_command(stage.name, stage.command(), stage.difference, say, variables), say)
    record_seconds(whole.run.workspace, stage.name, stage.manifests(), time.monotonic() - began)


def seconds_of(whole: WholeRecipe, stage: Stage) -> float | None:
    """How long a complete stage took; None if nothing recorded it.

    A stage of CHAIN is a link, so that its time is recorded in the workspace where it was built.
    """
    output = os.path.realpath(stage.outputs[0].directory)
    workspace = os.path.dirname(output) if stage.name in CHAIN else whole.run.workspace
    return earlier_seconds(workspace, stage.name, stage.manifests())


def _stage(stages: Sequence[Stage], name: str) -> Stage:
    return next(stage for stage in stages if stage.name == name)


def _link(target: str, link: str) -> None:
    """Make a relative link, so that the study may be moved; an earlier link to another target is replaced."""
    relative = os.path.relpath(os.path.realpath(target), os.path.realpath(os.path.dirname(link)))
    if os.path.islink(link):
        if os.readlink(link) == relative:
            return
        os.remove(link)
    elif os.path.lexists(link):
        raise InputError(f"{link}: is not a link of a study; choose another study.workspace")
    os.symlink(relative, link)
