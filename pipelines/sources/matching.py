"""Expand the paths and globs of a recipe on any file system that Arrow reads."""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote

from pyarrow import fs

from pipelines import storage
from pipelines.recipe import InputError
from pipelines.sources import InputFile

_WILDCARD = re.compile(r"[*?\[]")
# `?` is a wildcard as well: only `?key=value` at the end is a query, such as ?region=eu-west-1.
_QUERY = re.compile(r"\?[A-Za-z_]+=[^/]*$")


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
    location, path, query = _locate(pattern)
    wildcard = _WILDCARD.search(path)
    fixed = path[: wildcard.start()].rpartition("/")[0] if wildcard else path.rstrip("/")
    filesystem, base = storage.filesystem_of(_uri(location, fixed, query) or "/")
    base = base.rstrip("/")
    # Of a URI, the file system's paths leave out the host (hdfs://) or begin with the bucket (s3://, gs://).
    prefix = f"{location}{fixed}".rstrip("/").removesuffix(base) if location else ""

    def input_file(info: fs.FileInfo, name: str) -> InputFile:
        return InputFile(_uri(prefix, info.path, query), name, int(info.size), int(info.mtime_ns or 0))

    info = filesystem.get_file_info(base or "/")
    if info.type == fs.FileType.File:
        return [input_file(info, info.base_name)]
    selector = fs.FileSelector(base or "/", allow_not_found=True, recursive=True)
    below = _regex_of(path[len(fixed) :]) if wildcard else "/.*"
    regex = re.compile(re.escape(base) + below, re.DOTALL)
    label = base.rpartition("/")[2]
    return [
        input_file(info, f"{label}/{info.path[len(base) :].lstrip('/')}")
        for info in filesystem.get_file_info(selector)
        if info.type == fs.FileType.File and regex.fullmatch(info.path) and not info.base_name.startswith(".")
    ]


def _locate(pattern: str) -> tuple[str, str, str]:
    """A pattern's scheme, its path without percent encoding, and its query; of a local path, only the path."""
    if "://" not in pattern:
        return "", os.path.abspath(pattern), ""
    query = _QUERY.search(pattern)
    end = query.start() if query else len(pattern)
    start = pattern.index("://") + 3
    return pattern[:start], unquote(pattern[start:end]), pattern[end:]


def _uri(location: str, path: str, query: str) -> str:
    return f"{location}{quote(path, safe='/:@')}{query}" if location else path


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
