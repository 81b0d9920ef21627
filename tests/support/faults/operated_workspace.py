"""One workspace and the actions of an operator on it; the jobs are the real ones, only training is a stand-in.

Every action that may end badly runs in a child, so that it can be killed at a chosen change of the file system. The
children are forked by a server without threads: a fork of the tests' own process would hang in a lock that one of the
threads that earlier tests have left was holding.
The stand-in for training has the same life cycle as the real one (training/resuming/checkpointed_stage.py): lock,
verification, checkpoints, export, exchange. It has a hash in place of weights.
"""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines import shard_corpus, train_vocabulary
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, read_manifest, record_of, write_manifest
from pipelines.contract.recipe import Recipe, read_recipe
from pipelines.contract.workspace import CHECKPOINTS_DIRECTORY
from pipelines.results.locks import workspace_lock
from pipelines.results.marks import building_directory
from pipelines.results.verification import require_stage
from pipelines.settings.documents import DocumentsConfig
from pipelines.settings.vocabulary import VocabularyConfig
from pipelines.stage_keys import documents_key, vocabulary_key
from training.resuming.checkpointed_stage import begin, complete, is_to_run
from training.stages.checkpoint_source import checkpoint_names

STAGES = ("documents", "vocabulary", "pretraining")
TRAINING_STEPS = 3
REFUSED, FAILED = 2, 1

RECIPE = """
[run]
name = "operated"
workspace = "{workspace}"
workers = 1
[documents]
num_shards = 2
heldout_share = 0.2
[[documents.sources]]
inputs = ["{corpus}/*.txt"]
[vocabulary]
size = 120
"""
SETTINGS = {
    "documents": {1: "documents.heldout_share=0.2", 2: "documents.heldout_share=0.3"},
    "vocabulary": {1: "vocabulary.size=120", 2: "vocabulary.size=110"},
}
_CHILDREN = multiprocessing.get_context("forkserver")
_CHILDREN.set_forkserver_preload([__name__])


class Fault:
    """What happens to an action at its n-th change of the file system."""

    def __init__(self, kind: str, at_change: int) -> None:
        self.kind, self._left = kind, at_change

    def strike(self) -> None:
        self._left -= 1
        if self._left:
            return
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "interrupt":
            raise KeyboardInterrupt
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def struck(fault: Fault | None) -> Iterator[None]:
    """Let each function that changes files strike first; for a child process, which does not put them back."""
    names = ("move_directory", "move_file", "exchange_directories", "remove_directory", "remove_file", "flush_to_disk")
    for name in names if fault is not None else ():
        original: Callable[..., Any] = getattr(storage, name)

        def counted(*arguments: Any, original: Callable[..., Any] = original) -> Any:
            assert fault is not None
            fault.strike()
            return original(*arguments)

        setattr(storage, name, counted)
    yield


class OperatedWorkspace:
    """A workspace, its recipe, and the actions."""

    def __init__(self, directory: Path, corpus: Path) -> None:
        self.path = str(directory / "run")
        self._recipe = str(directory / "recipe.toml")
        Path(self._recipe).write_text(RECIPE.format(workspace=self.path, corpus=corpus))

    def directory(self, stage: str) -> str:
        return storage.join(self.path, stage)

    def recipe(self, settings: dict[str, int]) -> Recipe:
        return read_recipe(self._recipe, self._overrides(settings))

    def _overrides(self, settings: dict[str, int]) -> list[str]:
        return [SETTINGS[stage][settings[stage]] for stage in SETTINGS]

    def key(self, stage: str, settings: dict[str, int]) -> StageKey:
        recipe = self.recipe(settings)
        if stage == "documents":
            return documents_key(recipe.section("documents", DocumentsConfig), self.path)
        if stage == "vocabulary":
            return vocabulary_key(recipe.section("vocabulary", VocabularyConfig), self.path)
        manifest = read_manifest(self.directory("vocabulary"))
        inputs = {"vocabulary": manifest.digest if manifest else ""}
        return StageKey("pretraining", 1, {"value": settings["pretraining"]}, inputs)

    def act(self, stage: str, settings: dict[str, int], restart: bool = False, fault: Fault | None = None) -> int:
        """Run a stage in a child; 0, REFUSED, FAILED, or minus the signal that ended it."""
        child = _CHILDREN.Process(target=self._act, args=(stage, settings, restart, fault))
        child.start()
        child.join()
        assert child.exitcode is not None
        return child.exitcode

    def _act(self, stage: str, settings: dict[str, int], restart: bool, fault: Fault | None) -> None:
        code = FAILED
        try:
            # The output is not checked here.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            with struck(fault):
                self._run(stage, settings, "anew" if restart else None)
            code = 0
        except InputError:
            code = REFUSED
        except BaseException:  # noqa: BLE001 - any other end of the child is a failure of the action
            traceback.print_exc()
        finally:
            os._exit(code)

    def _run(self, stage: str, settings: dict[str, int], restart: str | None) -> None:
        if stage == "pretraining":
            self._train(self.key(stage, settings), restart)
            return
        arguments = [self._recipe, *(part for each in self._overrides(settings) for part in ("--set", each))]
        job = {"documents": shard_corpus, "vocabulary": train_vocabulary}[stage]
        try:
            job.run([*arguments, *(["--restart"] if restart else [])])
        except RuntimeError as error:
            # Beam wraps errors of a worker in its own.
            if "InputError" in str(error):
                raise InputError(str(error)) from error
            raise

    def _train(self, key: StageKey, restart: str | None) -> None:
        directory = self.directory("pretraining")
        if not is_to_run(key, directory, restart):
            return
        with workspace_lock(self.path, "pretraining"):
            require_stage(self.path, "vocabulary", "it")
            if not begin(key, directory, restart, lambda _: None):
                return
            building = building_directory(directory)
            folder = storage.join(building, CHECKPOINTS_DIRECTORY)
            state = state_of(key)
            for step in range(1, TRAINING_STEPS + 1):
                name = f"step-{step:010d}"
                if name in checkpoint_names(folder):
                    state = storage.read_bytes(storage.join(folder, name, "state")).decode()
                    continue
                state = trained(state)
                temporary = storage.join(folder, f"incomplete-{step}")
                storage.write_bytes(storage.join(temporary, "state"), state.encode())
                write_manifest(temporary, key.manifest([record_of(temporary, "state", 0)], {}, "1"))
                storage.move_directory(temporary, storage.join(folder, name))
            storage.write_bytes(storage.join(building, "encoder/weights"), state.encode())
            write_manifest(building, key.manifest([record_of(building, "encoder/weights", 0)], {}, "1"))
            complete(key, directory, lambda _: None)

    def contents(self, directory: str) -> dict[str, bytes]:
        """The files that a result's manifest names."""
        manifest = read_manifest(directory)
        assert manifest is not None, directory
        return {file.name: storage.read_bytes(storage.join(directory, file.name)) for file in manifest.files}

    def damage(self, stage: str, place: float) -> str | None:
        """Change a byte of one file of a result, not its size. Returns the file's name, None if there is none."""
        manifest = read_manifest(self.directory(stage))
        if manifest is None:
            return None
        files = [file.name for file in manifest.files if file.size_bytes]
        path = Path(self.directory(stage), files[int(place * len(files))])
        data = bytearray(path.read_bytes())
        # Added, so that a second damage at the same byte does not repair the first.
        index = int(place * len(data))
        data[index] = (data[index] + 1) % 256
        path.write_bytes(data)
        return path.name


def state_of(key: StageKey) -> str:
    """Weights before the first step."""
    return hashlib.sha256(json.dumps([key.config, key.inputs], sort_keys=True).encode()).hexdigest()


def trained(state: str) -> str:
    """Weights after a step more."""
    return hashlib.sha256(state.encode()).hexdigest()
