"""Lines of text that people bring end in LF, CR or CRLF, whatever block of the file they are read in."""

from __future__ import annotations

import io
import os

import pytest

from pipelines.contract.errors import InputError
from training import extract_features
from training.extract_features import read_lines


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("block_bytes", [1, 2, 3, 1 << 18])
def test_lines_of_every_kind(monkeypatch: pytest.MonkeyPatch, end: str, block_bytes: int) -> None:
    monkeypatch.setattr(extract_features, "_BLOCK_BYTES", block_bytes)
    lines = ["First line.", "", "né \u2028 one", "last"]
    for data in (end.join(lines), end.join([*lines, ""])):
        stream = io.BytesIO(b"\xef\xbb\xbf" + data.encode())
        assert list(read_lines(stream, "x")) == lines
    assert list(read_lines(io.BytesIO(b""), "x")) == []
    assert list(read_lines(io.BytesIO(end.encode() * 2), "x")) == ["", ""]


def test_a_line_that_is_not_utf8_is_named() -> None:
    with pytest.raises(InputError, match="x:2: not UTF-8 at byte 3"):
        list(read_lines(io.BytesIO(b"a\rcaf\xe9\rb"), "x"))


def test_lines_come_as_they_are_written() -> None:
    """A line that is in a pipe does not wait for the next one."""
    reading, writing = os.pipe()
    with open(reading, "rb") as stream:
        os.write(writing, b"one\ntw")
        lines = read_lines(stream, "x")
        assert next(lines) == "one"
        os.write(writing, b"o\n")
        os.close(writing)
        assert list(lines) == ["two"]
