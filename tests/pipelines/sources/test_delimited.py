"""CSV and TSV against Python's csv module: quoted line ends, encodings, damaged rows named by line, ranges."""

from __future__ import annotations

import csv
import gzip
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.preprocessing.cut_files import BOM, line_ends, place_free
from tests.support.preprocessing.reading import files_of, read, read_in_ranges, reasons_of, texts_of

from pipelines.contract.errors import InputError
from pipelines.documents import document as documents
from pipelines.documents.document import plan_parts
from pipelines.reading.source import InputFile, RawDocument, Reject
from pipelines.settings.documents import DocumentsConfig, SourceConfig
from pipelines.sources.formats import source_of, split_file

CELLS = st.text(st.sampled_from('ab ñ語,\t"\n'), max_size=8)


def details_of(items: list[RawDocument | Reject]) -> list[tuple[str, str]]:
    return [(item.reason, item.detail) for item in items if isinstance(item, Reject)]


def without_blanks(text: str) -> str:
    """A text whose blank lines are empty."""
    return re.sub(r"(?<=\n)[ \t]+(?=\n)", "", text)


def table(rows: list[tuple[str, ...]], delimiter: str = ",", end: str = "\n") -> str:
    written = io.StringIO()
    # The writer quotes a line feed only if it ends lines.
    quoting = csv.QUOTE_MINIMAL if "\n" in end else csv.QUOTE_ALL
    csv.writer(written, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)
    return written.getvalue()


@pytest.mark.parametrize(("kind", "delimiter"), [("csv", ","), ("tsv", "\t")])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(CELLS, CELLS), max_size=8), end=st.sampled_from(["\n", "\r\n", "\r"]), bom=st.booleans())
def test_texts_are_those_that_pythons_writer_wrote(
    kind: str, delimiter: str, rows: list[tuple[str, str]], end: str, bom: bool, tmp_path: Path
) -> None:
    text = table([("id", "text"), *rows], delimiter, end)
    path = tmp_path / "a"
    path.write_bytes((BOM if bom else b"") + text.encode())
    items = read(path, format=kind)
    assert not reasons_of(items)
    # A line of tabs and spaces is blank, not a row.
    expected = [without_blanks(text) for name, text in rows if table([(name, text)], delimiter, end).strip()]
    assert texts_of(items) == expected
    assert len({item.source for item in items}) == len(expected)


def test_line_ends_and_encodings(tmp_path: Path) -> None:
    text = 'n,body\r\n1,"Größe.\r\n\r\nZweiter ""Absatz""."\r\n\r\n2,Ende ñ\r\n'
    expected = ['Größe.\n\nZweiter "Absatz".', "Ende ñ"]
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-16-le"):
        (tmp_path / "a.csv").write_bytes(text.encode(encoding))
        declared = "utf-8" if encoding in ("utf-8-sig", "utf-16") else encoding
        items = read(tmp_path / "a.csv", format="csv", text_field="body", encoding=declared)
        assert texts_of(items) == expected, encoding
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert texts_of(read(tmp_path / "a.csv.gz", format="csv", text_field="body")) == expected
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(text.encode())[:-9])
    items = read(tmp_path / "cut.csv.gz", format="csv", text_field="body")
    assert reasons_of(items) == ["truncated"]


def test_a_damaged_row_costs_itself_and_is_named_by_its_line(tmp_path: Path) -> None:
    rows = [
        b"id,text",
        b"1,good",
        b"2,too,many",
        b"3",
        b'4,"a ""quoted"" text',
        b"",
        b'of three lines"',
        b'5,"quote" and more',
        b'6,5" disk',
        b"7,caf\xe9",
        b'8,"two lines',
        b'with caf\xe9"',
        b"10,last good",
        b'11,"never closed',
        b"12,swallowed",
    ]
    (tmp_path / "a.csv").write_bytes(b"\n".join(rows) + b"\n")
    items = read(tmp_path / "a.csv", format="csv")
    assert texts_of(items) == ["good", 'a "quoted" text\n\nof three lines', '5" disk', "last good"]
    assert items[0].source == "a.csv#8"
    assert details_of(items) == [
        ("wrong-fields", "line 3: 3 fields, but the header has 2"),
        ("wrong-fields", "line 4: 1 fields, but the header has 2"),
        ("bad-csv", "line 8: ',' expected after '\"'"),
        ("undecodable", "line 10: bytes that are not in the encoding"),
        ("undecodable", "line 11 to 12: bytes that are not in the encoding"),
        ("bad-csv", "line 14 to 15: unexpected end of data"),
    ]


def test_a_row_that_is_too_large_costs_itself_only(tmp_path: Path) -> None:
    lines = "\n".join(["a long line of text"] * 100)
    (tmp_path / "a.csv").write_text(f'text,n\nfirst,1\n"{lines}",2\n{"x" * 2000},3\nlast,4\n')
    items = read(tmp_path / "a.csv", format="csv", max_record_bytes=1024)
    assert texts_of(items) == ["first", "last"]
    assert reasons_of(items) == ["too-large", "too-large"]
    (whole, long, *_) = read(tmp_path / "a.csv", format="csv")[1:]
    assert isinstance(whole, RawDocument)
    assert whole.text == lines
    assert isinstance(long, RawDocument)


def test_large_fields_are_read(tmp_path: Path) -> None:
    """Python's csv module refuses fields of more than 131,072 characters by default."""
    (tmp_path / "a.csv").write_text(f"text\n{'word ' * 50_000}\n")
    assert texts_of(read(tmp_path / "a.csv", format="csv")) == ["word " * 50_000]


def test_without_quoting_a_quotation_mark_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text('\ufefftext\tlabel\n"It is", he said\t1\n"an odd mark\t0\n')
    items = read(tmp_path / "dev.tsv", format="tsv", quoting="none")
    assert texts_of(items) == ['"It is", he said', '"an odd mark']
    assert reasons_of(items) == []
    assert reasons_of(read(tmp_path / "dev.tsv", format="tsv")) == ["bad-csv", "bad-csv"]


def test_a_wrong_column_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,body,body\n1,x,y\n")
    with pytest.raises(InputError, match=r"text_field = 'text': .*a.csv has no columns .*; columns there: id, body"):
        read(tmp_path / "a.csv", format="csv")
    with pytest.raises(InputError, match="has 2 columns of this name"):
        read(tmp_path / "a.csv", format="csv", text_field="body")
    (tmp_path / "0.csv").write_text("text\nfine\n")
    (tmp_path / "b.csv").write_text("")
    items = read(tmp_path, format="csv")
    assert texts_of(items) == ["fine"]
    assert [(item.source, item.reason) for item in items[1:] if isinstance(item, Reject)] == [
        (f"{tmp_path.name}/a.csv", "missing-field")
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.one_of(st.text(st.sampled_from('ab"ñ\t'), max_size=6), line_ends), max_size=20),
    start=st.sampled_from([b"", BOM, b"\n \n"]),
    data=st.data(),
)
def test_any_cuts_of_an_unquoted_file_give_what_the_whole_file_gives(
    parts: list[str], start: bytes, data: st.DataObject, tmp_path: Path
) -> None:
    content = start + b"id\ttext\n" + "".join(parts).encode()
    path = tmp_path / "a.tsv"
    path.write_bytes(content)
    source = SourceConfig(format="tsv", quoting="none", inputs=(str(path),))
    file = InputFile(str(path), "a.tsv", len(content), 0)
    cuts = data.draw(st.lists(st.integers(0, len(content)), max_size=5))
    whole = [place_free(item) for item in source_of(source).read(file, source)]
    assert [place_free(item) for item in read_in_ranges(file, source, cuts)] == whole


def test_only_what_has_no_quoted_line_ends_is_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PART_BYTES", 1000)
    (tmp_path / "a.csv").write_text("text\n" + "a line of text\n" * 1000)

    def num_parts(**more: str) -> int:
        return len(plan_parts(DocumentsConfig(sources=(SourceConfig(inputs=(str(tmp_path),), format="csv", **more),))))

    assert num_parts() == 1
    assert num_parts(quoting="none") > 10
    source = SourceConfig(inputs=(str(tmp_path),), format="csv", quoting="none")
    (file,) = files_of(source)
    pieces = split_file(replace(file), source, 1000)
    assert sum(len(list(source_of(source).read(piece, source))) for piece in pieces) == 1000


def test_keys_of_recipes_that_do_not_name_quoting_are_unchanged() -> None:
    assert "quoting" not in SourceConfig(inputs=("x",), format="jsonl").identity()
    assert SourceConfig(inputs=("x",), format="csv", quoting="none").identity()["quoting"] == "none"
    with pytest.raises(ValueError, match="quoting has no meaning for format = 'text', only for csv, tsv"):
        SourceConfig(inputs=("x",), quoting="none")


def test_real_tsv_files_give_every_row(shared_data: Path) -> None:
    path = shared_data / "glue/RTE/train.tsv"
    items = read(path, format="tsv", quoting="none", text_field="sentence1")
    assert len(texts_of(items)) == 2490
    assert not reasons_of(items)
    assert len(texts_of(read(path, format="tsv", text_field="sentence1"))) < 2490
