"""Read a recipe's TOML within limits: a regular file of at most 1 MB and 32 levels, without control characters.

The limits are checked before parsing: the parser recurses at brackets and takes quadratic time for dotted keys.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterator
from datetime import date, datetime, time
from typing import Any

from pipelines.contract.errors import InputError
from pipelines.contract.shown_text import shown

MAX_RECIPE_BYTES = 1_000_000
MAX_LEVELS = 32

_INTEGER_LIMIT = 1 << 63
_SHOWN_CHARACTERS = 80
_BYTE_ORDER_MARK = "\ufeff"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

# Possessive quantifiers, so that a hostile file costs one pass.
_TOKEN = re.compile(
    r"#[^\n]*+"
    r'|"""(?:[^\\"]|\\.|"(?!""))*+(?:"""|\Z)?'
    r"|'''(?:[^']|'(?!''))*+(?:'''|\Z)?"
    r'|(?P<part>"(?:[^"\\\n]|\\.)*+"?|\'[^\'\n]*+\'?|[A-Za-z0-9_+-]++)'
    r"|(?P<dot>\.)|(?P<open>[\[{])|(?P<close>[\]}])|(?P<line>\n)|(?P<blank>[ \t]++)|.",
    re.DOTALL,
)


class RecipeError(InputError):
    """A mistake in a recipe file or in a `--set` override."""


def read_file(path: str) -> dict[str, Any]:
    """Parse a recipe file, without validating its sections.

    Raises:
        RecipeError: it is not a readable regular file, too large, not UTF-8, not TOML, or beyond a limit.
    """
    data = _read(path)
    try:
        text = data.decode().removeprefix(_BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    if levels := _too_deep(text):
        raise RecipeError(f"{path}: {levels}")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is the first; int() has a limit of its own
        raise RecipeError(f"{path}: not valid TOML: {shortened(str(error), 200)}") from error


def _read(path: str) -> bytes:
    try:
        # A FIFO would wait for its writer, and some devices act when opened: check first, and do not block.
        if (kind := _unsuitable(os.stat(path).st_mode)) is None:
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
                if (kind := _unsuitable(os.fstat(stream.fileno()).st_mode)) is None:
                    data = stream.read(MAX_RECIPE_BYTES + 1)
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such recipe file; the ready-made ones are in flows/recipes/") from error
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot be read ({error.strerror}); choose a recipe file that this user can read"
        ) from error
    except ValueError as error:
        raise RecipeError(f"{path}: not the path of a file ({error}); choose a recipe file") from error
    if kind is not None:
        raise RecipeError(f"{path}: is {kind}; a recipe is a regular file, such as those in flows/recipes/")
    if len(data) > MAX_RECIPE_BYTES:
        raise RecipeError(
            f"{path}: larger than {MAX_RECIPE_BYTES:,} bytes, the limit for recipes; check the path, and give many "
            "inputs as a pattern such as corpus/*.txt"
        )
    return data


def _unsuitable(mode: int) -> str | None:
    if stat.S_ISREG(mode):
        return None
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")


def parse_value(text: str) -> Any:
    """Parse an override's value as TOML; what is not TOML, or is a TOML date, is plain text.

    Raises:
        RecipeError: it is more than one value, or beyond a limit.
    """
    if _CONTROL.search(text.replace("\t", " ")):
        raise RecipeError("holds a line break or another control character; give one setting on one line")
    if levels := _too_deep(text):
        raise RecipeError(levels)
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text.strip()
    # No setting is a date, but a folder may be named by one.
    return text.strip() if isinstance(value, date | time) else value


def require_limits(place: str, tables: dict[str, Any]) -> None:
    """Check every key and value of a recipe, overrides applied.

    Raises:
        RecipeError: a value is too deep, a date, an integer beyond 64 bits, or a text with control characters.
    """
    for levels, key, value in _walk(tables):
        if levels > MAX_LEVELS:
            raise RecipeError(f"{place}: {shortened(key)} is {levels} levels deep; a recipe has at most {MAX_LEVELS}")
        problem = ""
        # A tab alone separates columns.
        if isinstance(value, str) and value != "\t" and (found := _CONTROL.search(value)):
            problem = f'{shortened(value)!r}: holds the control character "{shown(found[0])}"; take it out'
        elif isinstance(value, int) and not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
            problem = f"{shortened(hex(value), 20)}: has more than 64 bits; give a smaller number"
        elif isinstance(value, datetime | date | time):
            problem = f'{value}: is a date or a time to TOML, which no setting is; write it as text: "{value}"'
        elif found := _CONTROL.search(key):
            problem = f'...: the key holds the control character "{shown(found[0])}"; take it out'
        if problem:
            raise RecipeError(f"{place}: {shortened(key)} = {problem}")


def _walk(tables: dict[str, Any]) -> Iterator[tuple[int, str, Any]]:
    """Level, dotted key and value of everything in a table, without recursion."""
    left: list[tuple[int, str, Any]] = [(1, key, value) for key, value in reversed(tables.items())]
    while left:
        level, key, value = left.pop()
        yield level, key, value
        if level > MAX_LEVELS:
            continue
        if isinstance(value, dict):
            left += [(level + 1, f"{key}.{name}", item) for name, item in reversed(value.items())]
        elif isinstance(value, list):
            left += [(level + 1, f"{key}.{index}", item) for index, item in reversed(list(enumerate(value)))]


def _too_deep(text: str) -> str | None:
    """Count nested brackets and dotted names, before anything is parsed."""
    line, brackets, parts, after_dot = 1, 0, 0, False
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind == "part":
            parts, after_dot = (parts + 1 if after_dot else 1), False
        elif kind == "dot":
            after_dot = True
        elif kind != "blank":
            parts, after_dot = 0, False
        if kind == "open":
            brackets += 1
        elif kind == "close":
            brackets = max(0, brackets - 1)
        if max(brackets, parts) > MAX_LEVELS:
            return f"line {line} is more than {MAX_LEVELS} levels deep, which no setting is"
        line += match[0].count("\n")
    return None


def shortened(text: str, length: int = _SHOWN_CHARACTERS) -> str:
    """The beginning of a text that is too long for a message."""
    return text if len(text) <= length else text[: length - 3] + "..."
