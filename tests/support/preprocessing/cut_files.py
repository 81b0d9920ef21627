"""Texts of every format for the tests that cut files into ranges."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from pipelines.reading.source import Reject

BOM = b"\xef\xbb\xbf"
PAGE = "<page><title>T{0}</title><ns>0</ns><id>{0}</id><revision><id>1</id><text>Prosa ñ {0}.</text></revision></page>"

texts = st.text(st.sampled_from("ab ñ語😀\t\x0b\x0c\x85\u2028\xa0"), max_size=12)
line_ends = st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\r\n\r\n", "\n \t\n"])
json_lines = st.one_of(texts.map(lambda text: json.dumps({"text": text}, ensure_ascii=False)), texts)
articles = st.one_of(
    st.builds('<doc id="{}" url="u" title="T">\nT\n{}\n</doc>'.format, st.integers(0, 99), texts), texts
)
pages = st.one_of(st.integers(0, 99).map(PAGE.format), texts, st.just("<mediawiki>"), st.just(" <page>"))

FORMATS: dict[str, tuple[dict[str, Any], st.SearchStrategy[str]]] = {
    "blank-line": ({"format": "text", "document_separator": "blank-line"}, texts),
    "google-bert": ({"format": "text", "document_separator": "google-bert"}, texts),
    "jsonl": ({"format": "jsonl"}, json_lines),
    "wikiextractor": ({"format": "wikiextractor"}, articles),
    "mediawiki": ({"format": "mediawiki"}, pages),
}


def place_free(item: Any) -> Any:
    """A range that does not begin the file has no line numbers: its details name bytes."""
    return replace(item, detail="") if isinstance(item, Reject) else item
