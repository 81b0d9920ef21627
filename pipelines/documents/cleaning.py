"""Clean a raw text before it is split into paragraphs: encoding, line ends, control characters, normal form, lines.

All changes are counted, and the counts are stored in the manifest.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from typing import NamedTuple

import ftfy

from pipelines.documents.combining_marks import sort_long_runs
from pipelines.settings.documents import CleaningConfig

_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(
    f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, sys.maxunicode, 0x1_0000)
)
_CONTROLS = f"\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f{_NONCHARACTERS}"
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028]")
_DROPPED = re.compile(f"[{_CONTROLS}]")
_ASCII_CONTROLS = bytes([*range(0x09), *range(0x0B, 0x20), 0x7F])
# The others in UTF-8. Each pattern begins with a fixed byte, which is searched for ten times faster than a set.
_OTHERS = [
    re.compile(rb"\xc2[\x80-\x9f]"),
    re.compile(rb"\xe2\x80[\xa8\xa9]"),
    re.compile(rb"\xef(?:\xb7[\x90-\xaf]|\xbf[\xbe\xbf])"),
    re.compile(rb"\xbf[\xbe\xbf](?<=[\xf0-\xf4][\x8f\x9f\xaf\xbf]\xbf[\xbe\xbf])"),
]
_PIECE_CHARACTERS = 1 << 20
_ONLY_MOJIBAKE = ftfy.TextFixerConfig(
    unescape_html=False,
    remove_terminal_escapes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    fix_surrogates=False,
    remove_control_chars=False,
    normalization=None,
    explain=False,
)


class CleanText(NamedTuple):
    """A text and what was done to it: counts by names of `CLEANING_COUNTS`."""

    text: str
    counts: dict[str, int]


SENTENCES_CUT = "sentences_cut"
CLEANING_COUNTS = ("texts_mended", "control_characters_removed", "texts_normalized", "lines_dropped", SENTENCES_CUT)


def clean_text(text: str, config: CleaningConfig) -> CleanText:
    """Clean a text in the order encoding, line ends, control characters, normal form, repeated lines.

    CR, CRLF, vertical tab, form feed, the ASCII separators, U+0085 and U+2028 end a line; U+2029 ends a paragraph. All
    other control characters (category Cc but tab) and noncharacters are removed. Format characters (Cf) stay: ZWJ and
    ZWNJ carry meaning in several scripts. U+FFFD stays as well, as a trace of damage. BERT's own tokenizer ignores all
    of them, so none of this changes a token id in otherwise correct text.
    """
    counts: dict[str, int] = {}
    if config.fix_mojibake and not text.isascii():
        mended = ftfy.fix_text(text, _ONLY_MOJIBAKE)
        counts["texts_mended"] = int(mended != text)
        text = mended
    if _has_rare(text):
        text = _LINE_ENDS.sub("\n", text).replace("\u2029", "\n\n")
        text, counts["control_characters_removed"] = _DROPPED.subn("", text)
    form = config.unicode_normalization
    if form != "none" and not text.isascii():
        normal = sort_long_runs(text, form)
        if not unicodedata.is_normalized(form, normal):
            normal = unicodedata.normalize(form, normal)
        if normal != text:
            text = normal
            counts["texts_normalized"] = 1
    if config.repeated_lines == "drop":
        text, counts["lines_dropped"] = drop_repeated_lines(text)
    return CleanText(text, counts)


def drop_repeated_lines(text: str) -> tuple[str, int]:
    """Remove each line that equals an earlier one, ignoring white space around it; blank lines stay.

    A line is the text between two line ends: a printed line of wrapped text, or a paragraph of an article.

    Returns:
        The text, and how many lines were removed.
    """
    seen: set[str] = set()
    kept = []
    num_dropped = 0
    for line in text.split("\n"):
        content = line.strip()
        if content and content in seen:
            num_dropped += 1
            continue
        seen.add(content)
        kept.append(line)
    return ("\n".join(kept), num_dropped) if num_dropped else (text, 0)


def _has_rare(text: str) -> bool:
    """Whether a text holds U+2029 or a match of `_LINE_ENDS` or `_DROPPED`; searched in pieces, to copy less."""
    if len(text) > _PIECE_CHARACTERS:
        return any(
            _has_rare(text[start : start + _PIECE_CHARACTERS]) for start in range(0, len(text), _PIECE_CHARACTERS)
        )
    data = text.encode()
    if len(data.translate(None, _ASCII_CONTROLS)) < len(data):
        return True
    return not text.isascii() and any(pattern.search(data) for pattern in _OTHERS)
