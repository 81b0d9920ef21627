"""Inputs behind URIs, and what a reader holds in memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pyarrow import fs
from tests.support.preprocessing.reading import files_of, read_all, texts_of

from pipelines.contract import storage
from pipelines.settings.documents import SourceConfig
from pipelines.sources.formats import source_of


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in ("a.jsonl", "sub/b c%20é?[1].jsonl"):
        path = tmp_path / "bucket" / "my corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name}))
    return tmp_path


LABELS = ["my corpus/a.jsonl", "my corpus/sub/b c%20é?[1].jsonl"]
TEXTS = ["a.jsonl", "sub/b c%20é?[1].jsonl"]


@pytest.mark.parametrize("pattern", ["my%20corpus", "my corpus/", "my corpus/**/*.json?", "my corpus/**/*[a-z].jsonl"])
def test_file_uris(corpus: Path, pattern: str) -> None:
    source = SourceConfig(format="jsonl", inputs=(f"file://{corpus}/bucket/{pattern}",))
    num_files = 1 if "[" in pattern else 2
    assert [file.name for file in files_of(source)] == LABELS[:num_files]
    assert texts_of(read_all(source)) == TEXTS[:num_files]


@pytest.mark.parametrize(
    "inputs",
    [
        "hdfs://namenode:8020{root}/bucket/my corpus/**",
        "hdfs://namenode:8020{root}/**/*.jsonl",
        "s3://bucket/my corpus/*/*?region=eu-west-1&endpoint_override=localhost:9000",
        "s3://key@bucket/my corpus",
        "gs://bucket/my%20corpus/a.jsonl",
    ],
)
def test_host_bucket_and_query_reach_the_reader(corpus: Path, monkeypatch: pytest.MonkeyPatch, inputs: str) -> None:
    """A stand-in for remote file systems, with URIs and paths as in Arrow: only ASCII, and quoted."""
    opened: list[str] = []
    bucket = fs.SubTreeFileSystem(str(corpus), fs.LocalFileSystem())

    def filesystem_of(uri: str) -> tuple[fs.FileSystem, str]:
        assert uri.isascii()
        assert " " not in uri
        opened.append(uri)
        path = unquote(urlsplit(uri).path)
        return (fs.LocalFileSystem(), path) if uri.startswith("hdfs") else (bucket, f"bucket{path}")

    monkeypatch.setattr(storage, "filesystem_of", filesystem_of)
    source = SourceConfig(format="jsonl", inputs=(inputs.format(root=corpus),))
    found = texts_of(read_all(source))
    assert found
    assert set(found) <= set(TEXTS)
    start = inputs[: inputs.index("bucket")] if "bucket" in inputs else "hdfs://namenode:8020{root}"
    assert all(uri.startswith(start.format(root=corpus)) for uri in opened)
    if "region" in inputs:
        assert all(uri.endswith("?region=eu-west-1&endpoint_override=localhost:9000") for uri in opened)


@pytest.mark.slow
def test_memory_is_bounded_by_blocks_and_records(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One line of a document.\nAnother line of it.\n\n" * 100_000)
    source = SourceConfig(inputs=(str(path),), document_separator="blank-line")
    (file,) = files_of(source)
    assert file.size_bytes >= 4_500_000
    tracemalloc.start()
    try:
        num_documents = sum(1 for _ in source_of(source).read(file, source))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_documents == 100_000
    assert peak_bytes < 2_500_000
