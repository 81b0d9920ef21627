"""Damaged, foreign and hostile files: a reject that names the cause, and every good record kept."""

from __future__ import annotations

import bz2
import gzip
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from tests.support.preprocessing.reading import files_of, read, reasons_of, texts_of

from pipelines.reading import unpacking
from pipelines.reading.source import InputFile, Reject
from pipelines.reading.wiki_markup import prose_of
from pipelines.settings.documents import SourceConfig
from pipelines.sources.formats import source_of

RECORD_FORMATS: list[dict[str, Any]] = [
    {"format": "text", "document_separator": "file"},
    {"format": "text", "document_separator": "blank-line"},
    {"format": "text", "document_separator": "google-bert"},
    {"format": "jsonl"},
    {"format": "wikiextractor"},
    {"format": "mediawiki"},
    {"format": "parquet"},
    {"format": "arrow"},
]
LEAKED_MARKUP = ("[[", "]]", "{{", "}}", "<ref", "{|", "|-", "|}", "thumb|", "'''", "==", "<br", "&nbsp;", "[[File:")


def noise(num_bytes: int) -> bytes:
    return random.Random(1).randbytes(num_bytes)


def packed(name: str, data: bytes) -> bytes:
    if name == "zst":
        return bytes(pa.Codec("zstd").compress(data, asbytes=True))
    return {"gz": gzip.compress, "bz2": lambda part: bz2.compress(part, 1)}[name](data)


def records(num_records: int) -> list[str]:
    generator = random.Random(2)
    return [f"{number} " + "".join(generator.choices("abcdefghij klm", k=400)) for number in range(num_records)]


@pytest.mark.parametrize("codec", ["gz", "bz2", "zst"])
@pytest.mark.parametrize("separator", ["json", "blank-line"])
def test_of_a_truncated_archive_the_whole_records_are_kept(tmp_path: Path, codec: str, separator: str) -> None:
    texts = records(2000)
    lines = [f'{{"text": "{text}"}}\n' if separator == "json" else f"{text}\n\n" for text in texts]
    data = packed(codec, "".join(lines).encode())
    path = tmp_path / f"a.{codec}"
    path.write_bytes(data[: len(data) * 2 // 3])
    settings = {"format": "jsonl"} if separator == "json" else {"document_separator": "blank-line"}
    items = read(path, **settings)
    kept = texts_of(items)
    assert kept == [text.strip() if separator != "json" else text for text in texts[: len(kept)]]
    assert 900 < len(kept) < 1400
    last = items[-1]
    assert isinstance(last, Reject)
    assert (last.source, last.reason) == (path.name, "truncated")
    num_bytes = int(last.detail.split()[1])
    assert sum(map(len, lines[: len(kept)])) <= num_bytes < sum(map(len, lines[: len(kept) + 1]))
    assert reasons_of(items) == ["truncated"]


@pytest.mark.parametrize("codec", ["gz", "bz2"])
def test_a_damaged_archive_keeps_what_lies_before_the_damage(tmp_path: Path, codec: str) -> None:
    data = bytearray(packed(codec, "".join(f'{{"text": "{text}"}}\n' for text in records(3000)).encode()))
    data[len(data) // 2] ^= 0xFF
    path = tmp_path / f"a.{codec}"
    path.write_bytes(data)
    items = read(path, format="jsonl")
    assert len(texts_of(items)) > 1000
    assert items[-1].reason == "truncated" if isinstance(items[-1], Reject) else False


def test_a_document_that_is_a_truncated_file_is_not_kept_in_part(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(packed("gz", "\n".join(records(100)).encode())[:-20])
    items = read(tmp_path)
    assert reasons_of(items) == ["truncated"]
    assert not texts_of(items)


def test_a_dump_that_breaks_off_keeps_its_whole_pages(tmp_path: Path) -> None:
    revision = "<revision><id>1</id><text>Prose {0}.</text></revision>"
    page = f"  <page>\n<title>T</title><ns>0</ns><id>{{0}}</id>{revision}\n</page>"
    text = "<mediawiki>\n" + "\n".join(page.format(number) for number in range(5))
    (tmp_path / "a.xml").write_text(text[:-30])
    items = read(tmp_path, format="mediawiki")
    assert texts_of(items) == [f"Prose {number}." for number in range(4)]
    assert reasons_of(items) == ["truncated"]


@pytest.mark.parametrize("settings", RECORD_FORMATS, ids=lambda settings: "-".join(settings.values()))
@pytest.mark.parametrize(
    ("content", "reasons"),
    [
        (b"", {"damaged", "empty", None}),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + noise(5000), {"binary", "damaged"}),
        (noise(3_000_000), {"binary", "damaged"}),
        ("Ein Text ohne Marke.\n\nNoch einer.".encode("utf-16-le"), {"binary", "damaged"}),
        ("Текст без метки. 😀".encode("utf-16-be"), {"undecodable", "binary", "damaged"}),
        (b"caf\xe9 con leche", {"undecodable", "damaged"}),
    ],
    ids=["empty", "png", "noise", "utf-16-latin", "utf-16-cyrillic", "latin-1"],
)
def test_what_is_not_text(tmp_path: Path, settings: dict[str, Any], content: bytes, reasons: set[str | None]) -> None:
    (tmp_path / "a").write_bytes(content)
    items = read(tmp_path / "a", **settings)
    assert all(isinstance(item, Reject) for item in items) or content == b""
    assert set(reasons_of(items)) <= reasons
    assert len(items) == 1 or not content


def test_nuls_cost_their_record_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"A good text.\n\nOne with \0 inside.\n\nAnother good one.")
    items = read(tmp_path / "a.txt", document_separator="blank-line")
    assert texts_of(items) == ["A good text.", "Another good one."]
    assert [(item.source, item.reason) for item in items if isinstance(item, Reject)] == [("a.txt#14", "binary")]
    (whole,) = read(tmp_path / "a.txt")
    assert isinstance(whole, Reject)
    assert whole.detail.startswith("NUL at byte 23")


def test_undecodable_records_name_their_byte_and_others_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n{"text": "b"}\n')
    items = read(tmp_path / "a.jsonl", format="jsonl")
    assert texts_of(items) == ["a", "b"]
    assert items[1] == Reject("a.jsonl#14", "undecodable", "not UTF-8 at byte 27: invalid continuation byte")


def test_half_a_surrogate_pair_in_utf16_costs_its_record_only(tmp_path: Path) -> None:
    text = "\ufeffGood.\n\nBad \ud83d here.\n\nGood again."
    (tmp_path / "a.txt").write_bytes(text.encode("utf-16-le", "surrogatepass"))
    items = read(tmp_path / "a.txt", document_separator="blank-line")
    assert texts_of(items) == ["Good.", "Good again."]
    assert reasons_of(items) == ["undecodable"]


def test_utf16_by_name_needs_a_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Text.".encode("utf-16-le"))
    (item,) = read(tmp_path / "a.txt", encoding="utf-16")
    assert isinstance(item, Reject)
    assert item.detail == "no byte order mark at byte 0; say encoding = 'utf-16-le' or 'utf-16-be'"
    assert texts_of(read(tmp_path / "a.txt", encoding="utf-16-le")) == ["Text."]


@pytest.mark.parametrize("settings", [{}, {"document_separator": "blank-line"}, {"format": "jsonl"}], ids=str)
def test_one_long_line_is_read_and_one_that_does_not_fit_is_rejected(tmp_path: Path, settings: dict[str, str]) -> None:
    line = "word " * 800_000
    text = f'{{"text": "{line}"}}' if settings.get("format") == "jsonl" else line
    (tmp_path / "a.txt").write_text(text + "\n\n")
    (found,) = texts_of(read(tmp_path / "a.txt", **settings))
    assert found.strip() == line.strip()
    (item,) = read(tmp_path / "a.txt", max_record_bytes=1 << 20, **settings)
    assert isinstance(item, Reject)
    assert item.reason == "too-large"
    assert str(len(text)) in item.detail or str(len(text) + 1) in item.detail or str(len(text) + 2) in item.detail


def test_a_record_too_large_costs_itself_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("First.\n\n" + "long line\n" * 1000 + "\n" + "x" * 5000 + "\n\nLast.")
    items = read(tmp_path / "a.txt", document_separator="blank-line", max_record_bytes=1024)
    assert texts_of(items) == ["First.", "Last."]
    assert reasons_of(items) == ["too-large", "too-large"]


def test_damaged_tables_keep_what_can_be_read(tmp_path: Path) -> None:
    table = pa.table({"text": [f"{number} " + "x" * 50 for number in range(1000)]})
    with pa.ipc.new_stream(tmp_path / "a.arrows", table.schema) as writer:
        writer.write_table(table, 100)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100, compression="gzip", use_dictionary=False)
    stream = (tmp_path / "a.arrows").read_bytes()
    (tmp_path / "a.arrows").write_bytes(stream[: len(stream) // 2])
    items = read(tmp_path / "a.arrows", format="arrow")
    assert 300 <= len(texts_of(items)) < 600
    assert reasons_of(items) == ["truncated"]
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[300:340] = noise(40)
    (tmp_path / "a.parquet").write_bytes(data)
    items = read(tmp_path / "a.parquet", format="parquet")
    assert len(texts_of(items)) == 900
    assert reasons_of(items) == ["damaged"]
    (tmp_path / "a.parquet").write_bytes(data[:-100])
    assert reasons_of(read(tmp_path / "a.parquet", format="parquet")) == ["damaged"]


def test_a_file_that_vanishes_is_no_reject(tmp_path: Path) -> None:
    for settings in [*RECORD_FORMATS, {"format": "python-docstrings"}]:
        source = SourceConfig(inputs=("x",), **settings)
        with pytest.raises(unpacking.StorageFaultError, match=r"/gone: opening failed: No such file or directory$"):
            list(source_of(source).read(InputFile(f"{tmp_path}/gone", "gone", 5, 0), source))


@pytest.mark.slow
def test_real_dump(shared_data: Path) -> None:
    items = read(shared_data / "corpora/enwiki_xml", format="mediawiki")
    texts = texts_of(items)
    assert Counter(reasons_of(items)) == {"redirect": 100, "empty": 1}
    assert len(texts) == 105 + 5
    assert sum(map(len, texts)) > 1_500_000
    leaks = [
        (mark, text[max(0, text.index(mark) - 40) :][:80]) for text in texts for mark in LEAKED_MARKUP if mark in text
    ]
    assert leaks == []


@pytest.mark.slow
def test_real_wikiextractor_output(shared_data: Path) -> None:
    for directory in ("corpora/enwiki_extract", "messy/zhwiki_extract", "messy/kowiki_extract"):
        items = read(shared_data / directory, format="wikiextractor")
        assert set(reasons_of(items)) <= {"title-only", "empty"}
        assert not any("<doc" in text or "</doc" in text for text in texts_of(items))
        assert len(texts_of(items)) > 100


@pytest.mark.slow
@pytest.mark.parametrize("settings", RECORD_FORMATS, ids=lambda settings: "-".join(settings.values()))
def test_messy_files_end_in_documents_or_rejects(shared_data: Path, settings: dict[str, Any]) -> None:
    directories = ["emoji", "html", "tei_xml", "wiki_xml", "udhr_legacy_encodings", "kowiki_extract"]
    items = [item for name in directories for item in read(shared_data / "messy" / name, **settings)]
    assert len(items) > 300
    assert all(item.reason and item.detail for item in items if isinstance(item, Reject))
    assert all("\0" not in text for text in texts_of(items))


def test_legacy_encodings_are_undecodable_or_read_by_name(shared_data: Path) -> None:
    directory = shared_data / "messy/udhr_legacy_encodings"
    items = read(directory)
    assert set(reasons_of(items)) <= {"undecodable", "binary"}
    assert len(texts_of(items)) > 90
    latin = read(f"{directory}/*-Latin1", encoding="latin-1")
    assert not reasons_of(latin)
    assert any("Größe" in text or "über" in text for text in texts_of(latin))


@pytest.mark.parametrize(
    "opening", ["<div ", "<b>", "<ref>", "<nowiki>", "[http://x ", "[[a", "{{ }}", "(", "\n{|", "="]
)
def test_markup_that_is_never_closed_does_not_cost_its_square(opening: str) -> None:
    started = time.process_time()
    prose_of(opening * 20_000)
    assert time.process_time() - started < 2


FAULTY_FORMATS = {
    "a.txt": {},
    "b.txt": {"document_separator": "blank-line"},
    "c.txt.gz": {"document_separator": "blank-line"},
    "d.txt.bz2": {"document_separator": "blank-line"},
    "e.jsonl.zst": {"format": "jsonl"},
    "f.parquet": {"format": "parquet"},
    "g.arrow": {"format": "arrow"},
    "h.arrows": {"format": "arrow"},
}


@pytest.mark.parametrize("name", FAULTY_FORMATS)
def test_a_file_system_that_fails_is_no_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A retry may succeed, so the records must not be given up."""
    texts = [f'{{"text": "{text}"}}\n\n' for text in records(500)]
    table = pa.table({"text": texts})
    kind = name.rpartition(".")[2]
    if kind == "parquet":
        pq.write_table(table, tmp_path / name, row_group_size=50, use_dictionary=False)
    elif kind in ("arrow", "arrows"):
        with (pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream)(tmp_path / name, table.schema) as writer:
            writer.write_table(table, 50)
    else:
        data = "".join(texts).encode()
        (tmp_path / name).write_bytes(data if kind == "txt" else packed(kind, data))
    source = SourceConfig(inputs=(str(tmp_path),), **FAULTY_FORMATS[name])
    (file,) = files_of(source)
    whole = list(source_of(source).read(file, source))
    assert len(texts_of(whole)) == (1 if name == "a.txt" else 500)
    reads = {"made": 0, "fails_at": 10**9}

    class Failing:
        """A file whose n-th read fails."""

        def __init__(self, file: Any):
            self._file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def read(self, num_bytes: int | None) -> bytes:
            reads["made"] += 1
            if reads["made"] >= reads["fails_at"]:
                raise OSError("Connection reset by peer")
            data: bytes = self._file.read(num_bytes)
            return data

    guarded = unpacking._GuardedFile
    monkeypatch.setattr(unpacking, "_GuardedFile", lambda uri, file: guarded(uri, Failing(file)))
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", 10_000)
    assert list(source_of(source).read(file, source)) == whole
    num_reads = reads["made"]
    for fails_at in range(1, num_reads + 1, max(1, num_reads // 5)):
        reads.update(made=0, fails_at=fails_at)
        with pytest.raises(unpacking.StorageFaultError, match=rf"{name}: reading failed: Connection reset by peer"):
            list(source_of(source).read(file, source))


def test_a_file_system_that_cannot_open_a_file_is_no_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x")
    source = SourceConfig(inputs=(str(tmp_path),))
    (file,) = files_of(source)

    class Full(fs.LocalFileSystem):
        def open_input_file(self, _path: str) -> Any:
            raise OSError(23, "Too many open files in system")

    monkeypatch.setattr("pipelines.contract.storage.filesystem_of", lambda uri: (Full(), uri))
    with pytest.raises(unpacking.StorageFaultError, match=r"opening failed: .*Too many open files"):
        list(source_of(source).read(file, source))
