"""The three jobs and `validate` with a workspace in a store: the bytes of the local run, under faults too."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.object_store.fault_proxy import FaultProxy
from tests.support.object_store.s3_server import S3Server
from tests.support.preprocessing.small_run import RECIPE, run_all, write_corpus

from pipelines.contract import storage
from pipelines.validation.workspace import validate


def _contents(workspace: str) -> dict[str, bytes]:
    names = [name for name in storage.list_files(workspace) if not name.startswith(".")]
    return {name: storage.read_bytes(storage.join(workspace, name)) for name in names}


@pytest.mark.slow
def test_jobs_on_a_failing_store_give_the_bytes_of_the_local_run(
    tmp_path: Path, s3_server: S3Server, s3_proxy: FaultProxy, capfd: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "corpus", num_documents=30)
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE.format(workspace=tmp_path / "workspace", corpus=tmp_path / "corpus"))
    run_all(str(recipe))
    workspace = s3_server.new_prefix()
    for kind, part in (("status", "documents"), ("cut", "parts"), ("down", "examples"), ("status", "manifest.json")):
        s3_proxy.add(kind, requests=4, path_part=part)
    capfd.readouterr()
    run_all(str(recipe), "--workspace", workspace)
    said = capfd.readouterr()
    assert "answers again after" in said.err
    assert _contents(workspace) == _contents(str(tmp_path / "workspace"))
    valid = [line.replace(workspace, str(tmp_path / "workspace")) for line in validate(workspace)]
    assert valid == validate(str(tmp_path / "workspace"))
    run_all(str(recipe), "--workspace", workspace)
    assert capfd.readouterr().out.count("complete and unchanged") == 3
