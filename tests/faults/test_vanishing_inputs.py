"""A corpus that is removed, changes or fails while it is read: an error that names the file, no text lost or added.

For real: files are removed and rewritten under a running job, by the job's own process so that the moment is known.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.faults.scale import rounds
from tests.support.preprocessing.small_run import RECIPE, write_corpus

from pipelines import shard_corpus
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest
from pipelines.documents import document as documents
from pipelines.documents import parts


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A corpus of several parts, and its recipe; retries do not wait."""
    write_corpus(tmp_path / "corpus", num_documents=30)
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE.format(workspace=tmp_path / "ws", corpus=tmp_path / "corpus"))
    monkeypatch.setattr(documents, "PART_BYTES", 6_000)
    monkeypatch.setattr(parts, "RETRY_PAUSES_SECONDS", (0.0, 0.0))
    return tmp_path, str(recipe)


def at_read(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], Any]) -> None:
    """Call a function just before the n-th file is read, every time."""
    read, calls = documents.DocumentReader.read, []

    def reading(self: Any, file: Any, source: Any) -> Any:
        calls.append(file.name)
        if len(calls) == number:
            action()
        return read(self, file, source)

    monkeypatch.setattr(documents.DocumentReader, "read", reading)


def files_below(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file() and path.suffix != ".json"}


@pytest.mark.slow
def test_a_corpus_that_vanishes_is_an_error_and_comes_back_without_loss(
    job: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root, recipe = job
    shard_corpus.run([recipe, "--workspace", str(root / "undisturbed")])
    expected = files_below(root / "undisturbed/documents")
    for number in range(1, 35, rounds(20, 2)):
        with monkeypatch.context() as patch:
            at_read(patch, number, lambda: shutil.move(root / "corpus", root / "gone"))
            with pytest.raises(InputError, match=r"opening failed: No such file or directory, 3 times"):
                shard_corpus.run([recipe])
        assert read_manifest(str(root / "ws/documents")) is None
        assert capfd.readouterr().err.count("retrying in 0 s") == 2
        shutil.move(root / "gone", root / "corpus")
        shard_corpus.run([recipe])
        assert files_below(root / "ws/documents") == expected
        shutil.rmtree(root / "ws")


@pytest.mark.slow
def test_a_corpus_that_comes_back_in_time_is_read(job: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, recipe = job
    shard_corpus.run([recipe, "--workspace", str(root / "undisturbed")])
    at_read(monkeypatch, 9, lambda: shutil.move(root / "corpus", root / "gone"))
    monkeypatch.setattr(parts.time, "sleep", lambda _: shutil.move(root / "gone", root / "corpus"))
    shard_corpus.run([recipe])
    assert files_below(root / "ws/documents") == files_below(root / "undisturbed/documents")


@pytest.mark.parametrize("change", ["cut", "grown", "rewritten"])
def test_a_file_that_changes_under_the_job_is_an_error(
    job: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    root, recipe = job
    path = root / "corpus/010.txt"
    text = path.read_text()
    other = {"cut": text[: len(text) // 2], "grown": text * 2, "rewritten": text.swapcase()}[change]
    with monkeypatch.context() as patch:
        at_read(patch, 2, lambda: path.write_text(other))
        with pytest.raises(InputError, match=r"corpus/010\.txt: changed while the corpus was read"):
            shard_corpus.run([recipe])
    assert read_manifest(str(root / "ws/documents")) is None
    shard_corpus.run([recipe])
    manifest = read_manifest(str(root / "ws/documents"))
    assert manifest is not None
    assert manifest.statistics["documents_read"] == 34


@pytest.mark.slow
def test_a_file_that_vanishes_is_no_reject_in_several_processes(job: tuple[Path, str]) -> None:
    """The workers are separate processes, so the file is a link to a path that is removed during planning."""
    root, recipe = job
    (root / "corpus/010.txt").unlink()
    (root / "corpus/010.txt").write_text("x" * 100)
    plan = shard_corpus.plan_parts

    def planning(*arguments: Any) -> Any:
        found = plan(*arguments)
        (root / "corpus/010.txt").unlink()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_corpus, "plan_parts", planning)
        with pytest.raises(Exception, match=r"corpus/010\.txt: opening failed: No such file or directory, 3 times"):
            shard_corpus.run([recipe, "--set", "run.workers=2"])
    assert read_manifest(str(root / "ws/documents")) is None
