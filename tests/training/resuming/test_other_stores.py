"""Pre-training with its workspace in Azure Blob Storage and Google Cloud Storage, as emulators on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.object_store.other_stores import OtherStore
from tests.support.training.synthetic_run import Workspace

from pipelines.contract import storage
from pipelines.contract.manifest import read_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_pretraining_in_the_store_has_the_files_of_a_local_one(
    other_store: OtherStore, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    uri = other_store.new_prefix()
    for name in storage.list_files(undisturbed.path):
        if name.startswith(("documents/", "vocabulary/", "examples/")):
            storage.write_bytes(storage.join(uri, name), storage.read_bytes(storage.join(undisturbed.path, name)))
    remote = Workspace(uri, undisturbed.recipe)
    done = remote.run("training.pretrain", ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = (read_manifest(storage.join(place, "pretraining")) for place in (uri, undisturbed.path))
    assert ours is not None
    assert theirs is not None
    assert ours.files == theirs.files
    for file in ours.files:
        assert storage.sha256_of(storage.join(uri, "pretraining", file.name)) == file.sha256
    assert any(name.startswith("checkpoints/step-") for name in storage.list_files(storage.join(uri, "pretraining")))
