"""Expand the paths and globs of a recipe on any file system that Arrow reads."""

from __future__ import annotations

import re

from pyarrow import fs

from pipelines import storage
from pipelines.recipe import InputError
from pipelines.sources import InputFile

_WILDCARD = re.compile(r"[*?\[]")


def find_files(patterns: tuple[str, ...]) -> list[InputFile]:
    """Files that the patterns name, each once, sorted by label and then by URI.

    A pattern is a file, a directory (all files below it), or a glob in which `**` crosses directories. Hidden files
    are passed over. A file's label is its path below the pattern's fixed part, that part's last name included.

    Raises:
        InputError: a pattern matches no file.
    """
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        matches = _match(pattern)
        if not matches:
            raise InputError(
                f"documents.sources: inputs = {pattern!r} matches no file; name a file, a directory or a glob"
            )
        found.update((file.uri, file) for file in matches)
    return sorted(found.values(), key=lambda file: (file.name, file.uri))


def _match(pattern: str) -> list[InputFile]:
    filesystem, path = storage.filesystem_of(pattern)
    scheme = pattern[: pattern.index("://") + 3] if "://" in pattern else ""
    wildcard = _WILDCARD.search(path)
    base = path[: wildcard.start()].rpartition("/")[0] if wildcard else path.rstrip("/")
    info = filesystem.get_file_info(base or "/")
    if info.type == fs.FileType.File:
        return [_input_file(scheme, info, info.base_name)]
    selector = fs.FileSelector(base, allow_not_found=True, recursive=True)
    regex = re.compile(_regex_of(path)) if wildcard else re.compile(re.escape(base) + "/.*")
    label = base.rpartition("/")[2]
    return [
        _input_file(scheme, info, f"{label}/{info.path[len(base) :].lstrip('/')}")
        for info in filesystem.get_file_info(selector)
        if info.type == fs.FileType.File and regex.fullmatch(info.path) and not info.base_name.startswith(".")
    ]


def _input_file(scheme: str, info: fs.FileInfo, name: str) -> InputFile:
    return InputFile(scheme + info.path, name, int(info.size), int(info.mtime_ns or 0))


def _regex_of(glob_path: str) -> str:
    """Translate a glob: `*` and `?` stay within a directory, `**/` also matches none, `[...]` is a character set."""
    pieces = []
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", glob_path, flags=re.DOTALL):
        if token == "**/":
            pieces.append("(?:.*/)?")
        elif token == "**":
            pieces.append(".*")
        elif token == "*":
            pieces.append("[^/]*")
        elif token == "?":
            pieces.append("[^/]")
        elif len(token) > 1:
            pieces.append("[" + token[1:-1].replace("!", "^", 1) + "]" if token[1] == "!" else token)
        else:
            pieces.append(re.escape(token))
    return "".join(pieces)
