"""Escape names and texts from outside, so that a terminal or a log only shows them."""

from __future__ import annotations

import re

# Controls move the cursor and end lines; the separators end lines for many readers; the bidirectional marks reorder
# the text around them (CVE-2021-42574); halves of surrogate pairs cannot be encoded as UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}
_CUT = " ..."


def shown(text: str, max_characters: int | None = None) -> str:
    r"""Text with control characters, line ends, bidirectional marks and lone surrogates as escapes such as `\x1b`.

    Escaped text stays as it is, so escaping twice is harmless. A byte of a file name that is not UTF-8, which Python
    keeps as a surrogate, is shown as that byte.

    Args:
        max_characters: length to cut the text to, if it is longer.
    """
    escaped = _UNSAFE.sub(_escape, text)
    if max_characters is None or len(escaped) <= max_characters:
        return escaped
    return escaped[: max_characters - len(_CUT)] + _CUT


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
