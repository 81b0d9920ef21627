"""Life cycle of a long training stage: built next to its earlier result, resumed, replaced, and never deleted.

Shared by pre-training and distillation. Rank 0 decides, under the stage's lock, and broadcasts its decisions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, read_manifest
from pipelines.contract.workspace import CHECKPOINTS_DIRECTORY, ENGINE_JSON_NAME, MANIFEST_NAME
from pipelines.results.builds import finish_exchange, has_leftovers, install_build, open_build
from pipelines.results.kept import kept_result, next_kept_directory, restore_kept, set_build_aside
from pipelines.results.limits import limit_kept
from pipelines.results.locks import consumed, workspace_lock
from pipelines.results.marks import building_directory, is_resumable, mark_as_build, place_of, read_mark, require_ours
from pipelines.results.verification import Verification
from training.resuming.adoption import adopt, verify
from training.resuming.checkpoints import refuse_foreign_checkpoints
from training.stages.checkpoint_source import checkpoint_names
from training.stages.continuing import Continuation

if TYPE_CHECKING:
    from training.engine.processes import Processes

ResultT = TypeVar("ResultT")

_LEASE_SECONDS = 120.0
"""Longer than a lease is valid that its holder does not renew."""

RUN_NAMES = (f"{CHECKPOINTS_DIRECTORY}/", ENGINE_JSON_NAME)
"""What a run leaves in its directory that its manifest does not list: names, and directories with a slash."""


def is_to_run(key: StageKey, directory: str, restart: str | None) -> bool:
    """Whether the stage must be trained. Rank 0 prints why, or that it is complete. Changes nothing.

    Args:
        key: of the run.
        directory: of the stage's result.
        restart: rebuild even if the stage is complete, or an unfinished run could be resumed (see `open_build`).

    Raises:
        InputError: the directory belongs to an unfinished run with other settings, to a newer release, or is unknown.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    difference = key.difference(directory)
    if difference is None and restart is None and not has_leftovers(directory):
        if is_first:
            print(f"{key.stage}: complete and up to date in {directory}", flush=True)
        return False
    if not _is_run_in_place(directory, key.stage):
        require_ours(directory, key.stage)
    if restart is None and kept_result(directory, key) is None:
        for place in (building_directory(directory), directory):
            if read_manifest(place) is None:
                refuse_foreign_checkpoints(storage.join(place, CHECKPOINTS_DIRECTORY), key)
    if is_first:
        print(f"{key.stage}: {difference or 'restarted'}; starting", flush=True)
        if read_manifest(directory) is not None:
            print(
                f"{key.stage}: the finished result in {directory} stays until the new one is complete, and is then "
                f"kept as {next_kept_directory(directory)}",
                flush=True,
            )
    return True


def on_first(processes: Processes, decide: Callable[[], ResultT]) -> ResultT:
    """Call a function on rank 0 and return its result on all ranks.

    Raises:
        InputError: on all ranks, if it raised one on rank 0.
    """
    answer: tuple[ResultT | None, str] = (None, "")
    if processes.is_first:
        try:
            answer = (decide(), "")
        except InputError as error:
            answer = (None, str(error))
    result, problem = processes.from_first(answer)
    if problem:
        raise InputError(problem)
    return result  # type: ignore[no-any-return]


def verify_together(processes: Processes, opened: Callable[[], Verification]) -> None:
    """Verify files, each rank its part of them.

    Args:
        processes: the ranks.
        opened: creates the verification, on each rank.

    Raises:
        InputError: on all ranks, for a file that is missing or damaged.
    """
    problem = ""
    try:
        verification = opened()
        verification.verify(processes.rank, processes.world_size)
    except InputError as error:
        problem = str(error)
    if problems := [found for found in processes.gathered(problem) if found]:
        raise InputError(problems[0])
    if processes.is_first:
        verification.record()


def _enter_lock(stack: ExitStack, workspace: str, name: str) -> None:
    """Hold a lock until the stack is closed; a lease in an object store is waited for, as its holder may be dead."""
    try:
        stack.enter_context(workspace_lock(workspace, name))
    except InputError as error:
        if storage.is_local(workspace):
            raise
        print(f"{error}; waiting, as it ends within {_LEASE_SECONDS:.0f} s of its holder", flush=True)
        stack.enter_context(workspace_lock(workspace, name, _LEASE_SECONDS))


@contextmanager
def lock_of_ranks(processes: Processes, workspace: str, name: str, reads: Sequence[str] = ()) -> Iterator[None]:
    """Hold a lock of the workspace on rank 0 during the block.

    Args:
        processes: the ranks.
        workspace: of the run.
        name: what is locked.
        reads: stages that are read meanwhile and must not be replaced.

    Raises:
        InputError: on all ranks, if another run holds it or builds one of the stages.
    """
    with ExitStack() as stack:
        on_first(processes, lambda: _enter_lock(stack, workspace, name))
        on_first(processes, lambda: stack.enter_context(consumed(workspace, reads)))
        yield


def begin(
    key: StageKey,
    directory: str,
    restart: str | None,
    say: Callable[[str], None],
    continuation: Continuation | None = None,
) -> bool:
    """Prepare the stage's build directory; must be called on rank 0, under the stage's lock, after all checks.

    Args:
        key: of the run.
        directory: of the stage's result.
        restart: set an unfinished run aside instead of resuming it.
        say: prints a line.
        continuation: the checkpoint of a finished run that a new build starts with.

    Returns:
        Whether there is something to train: not if an earlier result with this key was kept, which is then restored.

    Raises:
        InputError: as `is_to_run`; the checkpoint to continue from is damaged.
    """
    if continuation is not None:
        verify(continuation)
    if kept := finish_exchange(directory, keep_earlier=True):
        say(f"the earlier result is kept in {kept}")
    _adopt_run_in_place(directory, key.stage)
    if restart is None:
        if key.difference(directory) is None:
            return False
        if kept := kept_result(directory, key):
            other = restore_kept(directory, kept)
            say(f"{kept} was built with exactly these settings and is restored as the result")
            if other is not None:
                say(f"the replaced result is kept in {other}")
            return False
    mark = read_mark(directory)
    if mark is not None and not is_resumable(mark, key, restart):
        building = building_directory(directory)
        checkpoints = storage.join(building, CHECKPOINTS_DIRECTORY)
        is_finished = read_manifest(building) is not None
        if not is_finished and restart is None:
            refuse_foreign_checkpoints(checkpoints, key)
        if is_finished or checkpoint_names(checkpoints):
            say(f"the previous run is kept in {set_build_aside(directory)}")
    is_resumed = open_build(directory, key, restart)
    building = building_directory(directory)
    if continuation is not None and not (
        is_resumed and checkpoint_names(storage.join(building, CHECKPOINTS_DIRECTORY))
    ):
        adopt(continuation, key, building)
    return True


def complete(key: StageKey, directory: str, say: Callable[[str], None], keep_finished: int | None = None) -> None:
    """Move the finished build into place; must be called on rank 0, under the stage's lock.

    Args:
        key: of the build.
        directory: of the stage's result.
        say: prints a line.
        keep_finished: number of earlier results to keep; None keeps all.
    """
    if kept := install_build(directory, key, keep_earlier=True):
        say(f"the earlier result is kept in {kept}")
    if keep_finished is not None:
        for line in limit_kept(directory, keep_finished, RUN_NAMES):
            say(line)


def _is_run_in_place(directory: str, stage: str) -> bool:
    """Whether there is an unfinished run of a release that trained in the stage's own directory."""
    if storage.file_size_bytes(storage.join(directory, MANIFEST_NAME)) is not None:
        return False
    return _checkpoint_key(directory, stage) is not None


def _adopt_run_in_place(directory: str, stage: str) -> None:
    """Move an unfinished run of an earlier release to the build directory, so that it is resumed."""
    if storage.file_size_bytes(storage.join(directory, MANIFEST_NAME)) is not None:
        return
    key = _checkpoint_key(directory, stage)
    if key is not None and read_mark(directory) is None:
        storage.remove_directory(building_directory(directory))
        # Mark before moving: after a kill in between, the next run finds the same state as this one.
        mark_as_build(place_of(directory), key)
        storage.move_directory(place_of(directory), building_directory(directory))


def _checkpoint_key(directory: str, stage: str) -> StageKey | None:
    """The key that the newest readable checkpoint in a directory was written for."""
    folder = storage.join(directory, CHECKPOINTS_DIRECTORY)
    for name in reversed(checkpoint_names(folder)):
        try:
            manifest = read_manifest(storage.join(folder, name))
        except InputError:
            continue  # damaged: the one before it has the same key
        if manifest is not None and manifest.stage == stage:
            return StageKey(stage, manifest.stage_version, manifest.config, manifest.inputs)
    return None
