"""A store that is away for a part of a real pre-training, or until its end: the weights are those of a quiet run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.support import REPOSITORY
from tests.support.object_store.fault_proxy import FaultProxy
from tests.support.object_store.s3_server import S3Server
from tests.support.training.synthetic_run import Workspace, environment

from pipelines.contract import storage
from pipelines.contract.manifest import read_manifest
from pipelines.stores.patience import PATIENCE_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CHECKPOINTS: dict[str, Any] = {"methods": ("PUT", "POST"), "path_part": "checkpoints/step-"}
"""The requests that write checkpoints."""


@pytest.fixture
def remote(undisturbed: Any, s3_server: S3Server, s3_proxy: FaultProxy) -> Workspace:
    """The preprocessing of the undisturbed run in a store behind a proxy."""
    assert s3_proxy.target in s3_server.endpoint
    uri = s3_server.new_prefix()
    for name in storage.list_files(undisturbed.path):
        if name.startswith(("documents/", "vocabulary/", "examples/")):
            storage.write_bytes(storage.join(uri, name), storage.read_bytes(storage.join(undisturbed.path, name)))
    return Workspace(uri, undisturbed.recipe)


def trained(
    workspace: Workspace, disk: Path, patience_seconds: float, at_steps: Mapping[int, Callable[[], object]]
) -> tuple[int, list[str]]:
    """Train on two ranks under DeepSpeed's launcher, acting when a step is printed; returns exit code and lines."""
    process = subprocess.Popen(
        workspace.command("training.pretrain", ranks=2),
        env={**environment(), "XDG_CACHE_HOME": str(disk), PATIENCE_VARIABLE: str(patience_seconds)},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines, left = [], dict(at_steps)
    try:
        for line in process.stdout:
            lines.append(line.rstrip())
            for step in [step for step in left if f"pretraining: step {step}:" in line]:
                left.pop(step)()
        return process.wait(60), lines
    finally:
        process.kill()


def require_same_result(remote: Workspace, undisturbed: Workspace) -> None:
    ours = read_manifest(storage.join(remote.path, "pretraining"))
    theirs = read_manifest(storage.join(undisturbed.path, "pretraining"))
    assert ours is not None
    assert theirs is not None
    assert ours.files == theirs.files
    for file in ours.files:
        assert storage.sha256_of(storage.join(remote.path, "pretraining", file.name)) == file.sha256


def test_training_continues_while_the_store_is_away(
    remote: Workspace, undisturbed: Any, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    for kind in ("cut", "truncated"):
        s3_proxy.add(kind, requests=1, methods=("GET",), path_part="examples")
    s3_proxy.add("status", **CHECKPOINTS)
    code, lines = trained(remote, tmp_path, 60.0, {20: s3_proxy.withdraw})
    assert code == 0, "\n".join(lines)
    assert [line for line in lines if "checkpoints/step-" in line and "retrying for up to 60 s" in line], lines
    assert [line for line in lines if ": no checkpoint yet, as step-" in line], lines
    assert not [line for line in lines if line.startswith("error: ")]
    require_same_result(remote, undisturbed)


def test_a_store_that_is_away_at_the_end_gets_the_last_checkpoint_from_the_next_run(
    remote: Workspace, undisturbed: Any, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    s3_proxy.add("down", **CHECKPOINTS)
    code, lines = trained(remote, tmp_path, 2.0, {})
    assert code == 1, "\n".join(lines)
    errors = [line for line in lines if line.startswith("error: ")]
    # Another rank prints the line, too, if the first one's end takes seconds.
    assert errors, "\n".join(lines)
    assert all("to resume from step-0000000020, which is on the local disk" in error for error in errors), errors
    s3_proxy.withdraw()
    # The lease of the first run ends by itself, after its time.
    storage.remove_directory(storage.join(remote.path, ".locks"))
    code, lines = trained(remote, tmp_path, 60.0, {})
    assert code == 0, "\n".join(lines)
    assert "pretraining: checkpoint step-0000000020 is on the local disk only; storing it" in lines
    assert "pretraining: resumed from checkpoint step-0000000020" in lines
    assert not [line for line in lines if "pretraining: step 19:" in line], "nothing is computed again"
    require_same_result(remote, undisturbed)
