"""Ranges of a file together give what the file gives, wherever it is cut; large inputs become several parts."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.preprocessing.cut_files import BOM, FORMATS, line_ends, place_free
from tests.support.preprocessing.reading import files_of, read_in_ranges, reasons_of, texts_of

from pipelines.documents import document as documents
from pipelines.documents.document import DocumentReader, plan_parts
from pipelines.reading import text_records, unpacking
from pipelines.reading.source import InputFile
from pipelines.settings.documents import DocumentsConfig, SourceConfig
from pipelines.sources.formats import source_of, split_file


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_cuts_give_what_the_whole_file_gives(
    name: str, data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small blocks, so that lines and searches cross their borders.
    block_bytes = data.draw(st.sampled_from([1, 2, 7, 1000]))
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(text_records, "BLOCK_BYTES", block_bytes)
    common, lines = FORMATS[name]
    text = "".join(data.draw(st.lists(st.one_of(lines, line_ends), max_size=20)))
    content = data.draw(st.sampled_from([b"", BOM])) + text.encode()
    path = tmp_path / "corpus"
    path.write_bytes(content)
    source = SourceConfig(inputs=(str(path),), **common)
    file = InputFile(str(path), "corpus", len(content), 0)
    cuts = data.draw(st.lists(st.integers(0, len(content)), max_size=5))
    whole = [place_free(item) for item in source_of(source).read(file, source)]
    assert [place_free(item) for item in read_in_ranges(file, source, cuts)] == whole


@pytest.mark.parametrize(("end", "bom"), [("\n", b""), ("\r\n", BOM), ("\r", b"")])
def test_every_single_cut_of_a_small_file(tmp_path: Path, end: str, bom: bytes) -> None:
    text = end.join(["", "Erste Zeile ñ.", "Zweite.", "", " ", "語", "", "", "Letzte 😀"])
    content = bom + text.encode()
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    source = SourceConfig(inputs=(str(path),), document_separator="blank-line")
    (file,) = files_of(source)
    whole = list(source_of(source).read(file, source))
    assert texts_of(whole) == ["Erste Zeile ñ.\n\nZweite.", "語", "Letzte 😀"]
    starts = [content.index(word.encode()) for word in ("Erste", "語", "Letzte")]
    assert [item.source for item in whole] == [f"a.txt#{start}" for start in starts]
    for cut in range(len(content) + 1):
        assert read_in_ranges(file, source, [cut]) == whole


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be"])
def test_wide_encodings_are_read_whole_by_the_first_range(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    path.write_bytes(mark + "Eins ñ.\n\nZwei 😀\r\n\r\nDrei".encode(encoding))
    source = SourceConfig(inputs=(str(path),), document_separator="blank-line")
    (file,) = files_of(source)
    for cut in range(0, file.size_bytes, 3):
        assert texts_of(read_in_ranges(file, source, [cut])) == ["Eins ñ.", "Zwei 😀", "Drei"]


def test_a_search_for_a_line_start_stays_within_the_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each of the parts of one giant line would read all of it."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 100_000)
    source = SourceConfig(inputs=(str(path),), document_separator="blank-line")
    (file,) = files_of(source)
    read_bytes = 0

    class Counting:
        def __init__(self, stream: Any):
            self._stream = stream

        def __enter__(self) -> Counting:
            return self

        def __exit__(self, *_: object) -> None:
            self._stream.close()

        def read_at(self, num_bytes: int, offset: int) -> bytes:
            nonlocal read_bytes
            data: bytes = self._stream.read_at(num_bytes, offset)
            read_bytes += len(data)
            return data

    monkeypatch.setattr(text_records, "open_file", lambda uri: Counting(unpacking.open_file(uri)))
    middle = replace(file, first_byte=40_000, end_byte=50_000)
    assert list(source_of(source).read(middle, source)) == []
    assert read_bytes <= 10_001 + text_records.HEAD_BYTES


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables_split_by_row_group_or_batch(tmp_path: Path, kind: str) -> None:
    table = pa.table({"n": list(range(100)), "text": [f"Row {row}." for row in range(100)]})
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=7)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, 7)
    source = SourceConfig(format=kind, inputs=(str(path),))
    (file,) = files_of(source)
    whole = list(source_of(source).read(file, source))
    assert texts_of(whole) == table["text"].to_pylist()
    assert len({item.source for item in whole}) == 100
    for cut in range(0, file.size_bytes, 97):
        assert read_in_ranges(file, source, [cut, cut // 3]) == whole
    half = replace(file, end_byte=file.size_bytes // 4)
    assert 0 < len(list(source_of(source).read(half, source))) < 100


def write_jsonl(path: Path, num_records: int) -> None:
    records = (json.dumps({"text": f"Record number {number} says ñ. " * 3}) for number in range(num_records))
    path.write_text("\n".join(records) + "\n")


def test_large_inputs_become_several_parts_with_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "a.jsonl", 500)
    write_jsonl(tmp_path / "b.jsonl", 3)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    config = DocumentsConfig(sources=(SourceConfig(format="jsonl", inputs=(str(tmp_path),)),))

    def all_documents() -> list[Any]:
        parts = plan_parts(config)
        assert [part.number for part in parts] == list(range(len(parts)))
        reader = DocumentReader(config)
        return [item for part in parts for file in part.files for item in reader.read(file, part.source)]

    assert len(plan_parts(config)) == 1
    whole = all_documents()
    monkeypatch.setattr(documents, "PART_BYTES", 5000)
    parts = plan_parts(config)
    assert len(parts) > 8
    assert all(file.range_bytes < 10_000 for part in parts for file in part.files)
    assert all_documents() == whole
    assert len(whole) == 1003


def test_what_cannot_be_split_stays_whole(tmp_path: Path) -> None:
    def pieces(name: str, **settings: Any) -> int:
        source = SourceConfig(inputs=("x",), **settings)
        return len(split_file(InputFile(str(tmp_path / name), name, 1000, 0), source, 100))

    assert pieces("a.txt") == pieces("a.jsonl.gz", format="jsonl") == pieces("a.xml.zst", format="mediawiki") == 1
    assert pieces("a.txt", document_separator="blank-line") == pieces("a.parquet", format="parquet") == 10
    assert pieces("a.jsonl", format="jsonl") == pieces("a.xml.bz2", format="mediawiki") == 10


def test_ranges_cover_a_file_once() -> None:
    source = SourceConfig(format="jsonl", inputs=("x",))
    ranges = split_file(InputFile("a", "a", 1001, 0), source, 100)
    assert len(ranges) == 10
    assert sum(piece.range_bytes for piece in ranges) == 1001
    assert [piece.first_byte for piece in ranges[1:]] == [piece.end_byte for piece in ranges[:-1]]
    assert ranges[-1].end_byte is None


def test_a_trial_reads_only_the_start_of_a_large_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", 500)
    source = SourceConfig(format="jsonl", inputs=(str(tmp_path),), max_input_bytes=1000)
    (file,) = files_of(source)
    items = list(source_of(source).read(file, source))
    assert 5 < len(items) < 20
    assert not reasons_of(items)
