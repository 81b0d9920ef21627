"""The file of rejects: its bytes depend neither on the version of Python nor on the time of writing."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipelines.documents.rejects import gzip_member, write_rejects
from pipelines.reading.source import Reject


@given(st.binary(max_size=2000))
def test_members_are_gzip_with_a_header_that_is_always_the_same(data: bytes) -> None:
    member = gzip_member(data)
    assert gzip.decompress(member) == data
    assert gzip.decompress(member + member) == data + data
    assert member[:10] == bytes.fromhex("1f8b0800000000000203")
    # What Python 3.11's gzip.compress(data, mtime=0) gives: files of earlier releases stay as they are.
    assert member == zlib.compress(data, 9, wbits=31)


def test_a_reject_is_a_line_of_json(tmp_path: Path) -> None:
    rejects = [Reject("a\n.txt", "binary", "NUL"), Reject("é", "empty", "no text")]
    write_rejects(str(tmp_path / "r.gz"), rejects)
    lines = gzip.decompress((tmp_path / "r.gz").read_bytes()).decode().splitlines()
    assert [Reject(**json.loads(line)) for line in lines] == rejects
