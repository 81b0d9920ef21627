"""Every step of the three jobs dies after each of its writes and is retried, as by a runner; same bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from tests.support.preprocessing.small_run import RECIPE, files_below, run_all, write_corpus

from pipelines.contract import storage

NEVER = 1 << 30


class WorkerDiedError(Exception):
    """Simulates a worker's end: its files exist, its report does not."""


class DyingWorker:
    """Counts the files that were put in place, and dies after one of them."""

    def __init__(self) -> None:
        self._open = storage.atomic_output
        self.deaths: list[str] = []
        self._written = 0
        self._dies_after = NEVER

    @contextmanager
    def atomic_output(self, uri: str) -> Iterator[Any]:
        with self._open(uri) as stream:
            yield stream
        self._written += 1
        if self._written == self._dies_after:
            raise WorkerDiedError(uri)

    def tried_again_and_again(self, process: Callable[..., Any]) -> Callable[..., Any]:
        """The DoFn's `process`, whose attempts die after the first write, the second, and so on, and then after all."""

        @functools.wraps(process)
        def process_in_attempts(*arguments: Any, **keywords: Any) -> list[Any]:
            for attempt in range(1, NEVER):
                self._written, self._dies_after = 0, attempt
                try:
                    list(process(*arguments, **keywords))
                except WorkerDiedError:
                    self.deaths.append(type(arguments[0]).__name__)
                    continue
                break
            self._dies_after = NEVER
            # That attempt was complete, but its worker died before it could report it.
            return list(process(*arguments, **keywords))

        return process_in_attempts


def ours(kind: type) -> list[type]:
    """All kinds of DoFn of this project that have a `process` of their own."""
    found = [kind] if kind.__module__.startswith("pipelines.") and "process" in vars(kind) else []
    return found + [each for below in kind.__subclasses__() for each in ours(below)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["documents.near_duplicates.min_similarity=0.8", "examples.num_length_bins=2", "examples.masking='dynamic'"],
        ["documents.sources.0.name='corpus'", "documents.sources.0.weight=1.0"],
    ],
    ids=["plain", "near-duplicates-bins", "weights"],
)
def test_steps_that_die_and_are_tried_again_write_the_same_bytes(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "corpus", num_documents=20)
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE.format(workspace=tmp_path / "expected", corpus=tmp_path / "corpus"))
    overrides = [argument for setting in settings for argument in ("--set", setting)]
    run_all(str(recipe), *overrides)
    worker = DyingWorker()
    monkeypatch.setattr(storage, "atomic_output", worker.atomic_output)
    for kind in ours(beam.DoFn):
        monkeypatch.setattr(kind, "process", worker.tried_again_and_again(kind.process))
    run_all(str(recipe), "--workspace", str(tmp_path / "tried-again"), *overrides)
    assert files_below(tmp_path / "tried-again") == files_below(tmp_path / "expected")
    writers = {"ReadPart", "CollectShard", "CompleteDocuments", "CompleteVocabulary", "BuildShard", "CompleteExamples"}
    assert writers <= set(worker.deaths), worker.deaths
    assert ("CountTokens" in worker.deaths) == any("weight" in setting for setting in settings)
