"""A run in an object store orders the shards of its first steps before its engine is built."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.support.cluster_bench.training_loop import training_of
from tests.support.training.synthetic_run import Workspace, write_workspace

from pipelines.contract import storage
from pipelines.staging.staged import StagedDirectory


class _EngineWanted(Exception):  # noqa: N818 - not an error
    pass


@pytest.mark.slow
def test_shards_are_copied_while_the_engine_is_built(
    s3_workspace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write_workspace(str(tmp_path / "local"), rows=40)
    for name in storage.list_files(local.path):
        storage.write_bytes(storage.join(s3_workspace, name), storage.read_bytes(storage.join(local.path, name)))
    ordered: list[str] = []
    monkeypatch.setattr(StagedDirectory, "prefetch", lambda _, names: ordered.extend(_listed(names)))

    def no_engine() -> Any:
        raise _EngineWanted

    monkeypatch.setenv("MASTER_PORT", "0")
    with training_of(Workspace(s3_workspace, local.recipe), [f"run.local_directory='{tmp_path / 'cache'}'"]) as run:
        run._build_engine = no_engine
        with pytest.raises(_EngineWanted):
            run.run(restart=None)
    # The first one is here: its metadata were read.
    assert ordered == ["length32/train-00001-of-00002.arrow"]


def _listed(names: Iterable[str]) -> list[str]:
    return list(names)
