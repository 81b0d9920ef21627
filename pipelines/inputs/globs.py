"""Patterns of a recipe's inputs, cut into the names of a path: `*` and `?` within a name, `**` across directories."""

from __future__ import annotations

import re
from typing import NamedTuple

_WILDCARD = re.compile(r"[*?\[]")
_TOKEN = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", re.DOTALL)


def has_wildcard(text: str) -> bool:
    return _WILDCARD.search(text) is not None


class Pattern(NamedTuple):
    """What is matched below a directory: names, one per level, and optionally a rest that crosses directories.

    The rest begins with the first name that holds `**`; None if there is none. With neither, every file matches.
    """

    names: tuple[str, ...]
    rest: str | None

    @classmethod
    def of(cls, names: list[str]) -> Pattern:
        recursive = next((index for index, name in enumerate(names) if "**" in name), None)
        if not names:
            return cls((), "**")
        if recursive is None:
            return cls(tuple(names), None)
        return cls(tuple(names[:recursive]), "/".join(names[recursive:]))

    @property
    def last_name(self) -> str:
        """What a file's own name must match, in any directory; empty if the rest is more complex."""
        if self.rest is None:
            return self.names[-1]
        last = self.rest.removeprefix("**/")
        return last if "/" not in last and "**" not in last else ""


def regex_of(pattern: str) -> re.Pattern[str]:
    """Translate a pattern: `*` and `?` stay within a directory, `**/` also matches none, `[...]` is a character set."""
    pieces = []
    for piece in _TOKEN.findall(pattern):
        if piece == "**/":
            pieces.append("(?:.*/)?")
        elif piece == "**":
            pieces.append(".*")
        elif piece == "*":
            pieces.append("[^/]*")
        elif piece == "?":
            pieces.append("[^/]")
        elif len(piece) > 1:
            inner = re.sub(r"[\\\[&|~]", r"\\\g<0>", piece[1:-1])
            pieces.append(f"[^{inner[1:]}]" if inner[0] == "!" else f"[{inner}]")
        else:
            pieces.append(re.escape(piece))
    return re.compile("".join(pieces), re.DOTALL)
