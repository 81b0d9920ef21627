"""bz2 files of many streams: any cuts give what the complete file gives, and damage costs the rest of its range."""

from __future__ import annotations

import bz2
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.preprocessing.cut_files import BOM, FORMATS, PAGE, line_ends, place_free
from tests.support.preprocessing.reading import files_of, read_in_ranges, reasons_of, texts_of

from pipelines.reading import bz2_streams, text_records, unpacking
from pipelines.reading.source import InputFile, Reject
from pipelines.settings.documents import SourceConfig
from pipelines.sources.formats import source_of, split_file


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_cuts_of_any_streams_give_what_the_whole_file_gives(
    name: str, data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_bytes = data.draw(st.sampled_from([1, 7, 1000]))
    for module in (unpacking, text_records, bz2_streams):
        monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    common, lines = FORMATS[name]
    text = "".join(data.draw(st.lists(st.one_of(lines, line_ends), max_size=20)))
    content = data.draw(st.sampled_from([b"", BOM])) + text.encode()
    borders = sorted(data.draw(st.lists(st.integers(3, max(3, len(content))), max_size=5)))
    pieces = [content[start:stop] for start, stop in zip([0, *borders], [*borders, None], strict=True)]
    packed = b"".join(map(bz2.compress, pieces))
    path = tmp_path / "corpus.bz2"
    path.write_bytes(packed)
    source = SourceConfig(inputs=(str(path),), **common)
    file = InputFile(str(path), path.name, len(packed), 0)
    whole = [place_free(item) for item in source_of(source).read(file, source)]
    cuts = data.draw(st.lists(st.integers(0, len(packed)), max_size=5))
    assert [place_free(item) for item in read_in_ranges(file, source, cuts)] == whole

    plain = tmp_path / "corpus"
    plain.write_bytes(content)
    unpacked = list(source_of(source).read(InputFile(str(plain), "corpus", len(content), 0), source))
    assert texts_of(whole) == texts_of(unpacked)
    assert reasons_of(whole) == reasons_of(unpacked)


def test_every_single_cut_between_lines_that_cross_streams(tmp_path: Path) -> None:
    """Whether a line is blank may depend on the stream before the previous one."""
    pieces = [
        b"",
        b"One",
        b" \n",
        b"two.\n",
        b"\r",
        b"\n",
        b"Three",
        b".\n",
        b" ",
        b"\n",
        b"",
        b"Four.",
        b"\n\nFi",
        b"ve.",
    ]
    path = tmp_path / "a.bz2"
    path.write_bytes(b"".join(map(bz2.compress, pieces)))
    source = SourceConfig(inputs=(str(path),), document_separator="blank-line")
    (file,) = files_of(source)
    whole = list(source_of(source).read(file, source))
    assert texts_of(whole) == ["One \n\ntwo.", "Three.", "Four.", "Five."]
    for cut in range(file.size_bytes + 1):
        assert read_in_ranges(file, source, [cut]) == whole


def write_dump(path: Path, num_streams: int) -> list[int]:
    """A dump as MediaWiki writes them: header, streams of complete pages, closing tag. Returns the streams' starts."""
    pages = ["".join(f"  {PAGE.format(number * 10 + page)}\n" for page in range(10)) for number in range(num_streams)]
    starts, data = [], b""
    for piece in ["<mediawiki>\n", *pages, "</mediawiki>\n"]:
        starts.append(len(data))
        data += bz2.compress(piece.encode())
    path.write_bytes(data)
    return starts


def test_the_parts_of_a_dump_share_its_work(tmp_path: Path) -> None:
    write_dump(tmp_path / "dump.xml.bz2", 40)
    source = SourceConfig(format="mediawiki", inputs=(str(tmp_path),))
    (file,) = files_of(source)
    ranges = split_file(file, source, file.size_bytes // 8)
    assert len(ranges) == 8
    texts = [texts_of(source_of(source).read(piece, source)) for piece in ranges]
    assert [text for part in texts for text in part] == [f"Prosa ñ {number}." for number in range(400)]
    assert all(30 <= len(part) <= 70 for part in texts)


def test_a_single_stream_belongs_to_the_first_range(tmp_path: Path) -> None:
    text = "<mediawiki>\n" + "".join(f"  {PAGE.format(number)}\n" for number in range(500))
    (tmp_path / "dump.xml.bz2").write_bytes(bz2.compress(text.encode()))
    source = SourceConfig(format="mediawiki", inputs=(str(tmp_path),))
    (file,) = files_of(source)
    found = [texts_of(source_of(source).read(piece, source)) for piece in split_file(file, source, 200)]
    assert len(found) > 3
    assert list(map(len, found)) == [500] + [0] * (len(found) - 1)


def test_damage_costs_the_rest_of_its_range_only(tmp_path: Path) -> None:
    path = tmp_path / "dump.xml.bz2"
    starts = write_dump(path, 40)
    data = bytearray(path.read_bytes())
    data[starts[21] + 40] ^= 0xFF
    path.write_bytes(data)
    source = SourceConfig(format="mediawiki", inputs=(str(path),))
    (file,) = files_of(source)
    items = read_in_ranges(file, source, [starts[10], starts[20], starts[30]])
    assert reasons_of(items) == ["truncated"]
    numbers = [int(text.split()[-1].rstrip(".")) for text in texts_of(items)]
    assert numbers == [*range(200), *range(290, 400)]
    (whole,) = [item for item in source_of(source).read(file, source) if isinstance(item, Reject)]
    assert whole.source == "dump.xml.bz2"


def test_places_name_their_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.bz2"
    first = bz2.compress(b"One.\n\nTwo.\n\n")
    path.write_bytes(first + bz2.compress(b"Three.\n\nFo\xffur.\n\n"))
    source = SourceConfig(inputs=(str(path),), document_separator="blank-line")
    (file,) = files_of(source)
    for cut in (None, 3, len(first)):
        items: list[Any] = read_in_ranges(file, source, [] if cut is None else [cut])
        names = [item.source.partition("#")[2] for item in items]
        assert names == ["0", "6", f"{len(first)}+0", f"{len(first)}+8"]
        assert items[-1].detail == f"not UTF-8 at byte {len(first)}+10: invalid start byte"


def test_a_trial_reads_only_the_first_streams(tmp_path: Path) -> None:
    write_dump(tmp_path / "dump.xml.bz2", 40)
    source = SourceConfig(format="mediawiki", inputs=(str(tmp_path),), max_input_bytes=2000)
    (file,) = files_of(source)
    assert file.end_byte == 2000
    assert 10 < len(texts_of(source_of(source).read(file, source))) < 200
    assert texts_of(source_of(source).read(replace(file, end_byte=0), source)) == []
