"""Expand the paths and globs of a recipe on any file system that Arrow reads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote, unquote

from pyarrow import fs

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.shown_text import shown
from pipelines.contract.workspace import MANIFEST_NAME
from pipelines.inputs.globs import Pattern, has_wildcard, regex_of
from pipelines.inputs.local_files import LocalFile, LocalFiles
from pipelines.inputs.own_results import OwnResults, is_stage
from pipelines.reading.source import InputFile, Reject
from pipelines.reading.unpacking import StorageFaultError

# `?` is a wildcard as well: only `?key=value` at the end is a query, such as ?region=eu-west-1.
_QUERY = re.compile(r"\?[A-Za-z_]+=[^/]*$")


def find_files(patterns: tuple[str, ...], workspace: str | None = None) -> list[InputFile]:
    """Files that match the patterns, each once, sorted by label and then by URI.

    A pattern is a file, a directory (all files below it), or a glob in which `**` crosses directories. A name that
    exists is taken literally, whatever wildcards it holds. Hidden files and directories are skipped, and so are the
    run's workspace and other results of this project in a directory. A file's label is its path below the pattern's
    fixed part, that part's last name included.

    Raises:
        InputError: a pattern matches no file, or is not valid.
        StorageFaultError: a directory cannot be listed.
    """
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        matches = list(_match(pattern, workspace))
        if not matches:
            raise InputError(
                f"documents.sources: inputs = {pattern!r} matches no file; give a file, a directory or a glob (hidden "
                "files and results of earlier runs are skipped)"
            )
        found.update((file.uri, file) for file in matches)
    return sorted(found.values(), key=lambda file: (file.name, file.uri))


class _Root(NamedTuple):
    """The fixed part of a pattern: its file system, its path there, and the parts of the URIs below it."""

    filesystem: fs.FileSystem
    base: str
    prefix: str
    query: str

    def uri(self, path: str) -> str:
        return _uri(self.prefix, path, self.query)

    def input_file(self, path: str, name: str, size_bytes: int, modified_ns: int) -> InputFile:
        return InputFile(self.uri(path), name, size_bytes, modified_ns)


def _match(pattern: str, workspace: str | None) -> Iterator[InputFile]:
    location, path, query = _locate(pattern)
    fixed, names = _fixed_part(location, path, query)
    filesystem, base = storage.filesystem_of(_uri(location, fixed, query) or "/")
    base = base.rstrip("/")
    # Of a URI, the file system's paths leave out the host (hdfs://) or begin with the bucket (s3://, gs://).
    prefix = f"{location}{fixed}".rstrip("/").removesuffix(base) if location else ""
    root = _Root(filesystem, base, prefix, query)
    info = _info(filesystem, base or "/")
    label = base.rpartition("/")[2]
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    if info.type == fs.FileType.File:
        if names:
            return
        if is_local and is_stage(os.path.dirname(base), [MANIFEST_NAME]):
            raise InputError(f"documents.sources: inputs = {pattern!r}: is a result of this program, not a corpus")
        yield root.input_file(base, info.base_name, int(info.size), int(info.mtime_ns or 0))
    elif info.type == fs.FileType.Directory:
        try:
            parsed = Pattern.of(names)
            regex_of("/".join(names))
        except re.error as error:
            raise InputError(f"documents.sources: inputs = {pattern!r}: is not a valid pattern ({error})") from error
        if is_local:
            for file in LocalFiles(base or "/", parsed, OwnResults(workspace)).find():
                yield _local_input(root, label, file)
        else:
            for info in _remote_files(root, parsed):
                if not _lies_below(root.uri(info.path), workspace):
                    name = f"{label}/{info.path[len(base) :].lstrip('/')}"
                    yield root.input_file(info.path, name, int(info.size), int(info.mtime_ns or 0))
    elif info.type == fs.FileType.Unknown:
        raise InputError(f"documents.sources: inputs = {pattern!r}: is neither a regular file nor a directory")


def _local_input(root: _Root, label: str, file: LocalFile) -> InputFile:
    path, name = f"{root.base}/{file.relative}", f"{label}/{file.relative}"
    if file.problem is None:
        return root.input_file(path, name, file.size_bytes, file.modified_ns)
    return InputFile(shown(root.uri(path)), name, 0, 0, problem=Reject(name, *file.problem))


def _fixed_part(location: str, path: str, query: str) -> tuple[str, list[str]]:
    """A path's leading names that have no wildcards or exist literally, and the remaining names."""
    names = path.rstrip("/").split("/")
    count = 0
    while count < len(names) and not has_wildcard(names[count]):
        count += 1
    while count < len(names):
        filesystem, here = storage.filesystem_of(_uri(location, "/".join(names[: count + 1]), query))
        if _info(filesystem, here).type == fs.FileType.NotFound:
            break
        count += 1
        while count < len(names) and not has_wildcard(names[count]):
            count += 1
    return "/".join(names[:count]), names[count:]


def _remote_files(root: _Root, pattern: Pattern) -> Iterator[fs.FileInfo]:
    """Files below a root, listed level by level as far as the pattern has names, and recursively from there."""
    directories = [root.base]
    for depth, name in enumerate(pattern.names):
        regex = regex_of(name)
        infos = [
            info
            for directory in directories
            for info in _listed(root, directory, recursive=False)
            if regex.fullmatch(info.base_name) and (name.startswith(".") or not info.base_name.startswith("."))
        ]
        if pattern.rest is None and depth == len(pattern.names) - 1:
            yield from (info for info in infos if info.type == fs.FileType.File)
            return
        directories = [info.path for info in infos if info.type == fs.FileType.Directory]
    assert pattern.rest is not None
    regex = regex_of(pattern.rest)
    for directory in directories:
        for info in _listed(root, directory, recursive=True):
            below = info.path[len(directory) :].lstrip("/")
            if info.type == fs.FileType.File and regex.fullmatch(below) and not _is_hidden(below, pattern.last_name):
                yield info


def _is_hidden(below: str, last_name: str) -> bool:
    *directories, name = below.split("/")
    is_passed_over = name.startswith(".") and not last_name.startswith(".")
    return is_passed_over or any(directory.startswith(".") for directory in directories)


def _listed(root: _Root, directory: str, recursive: bool) -> list[fs.FileInfo]:
    selector = fs.FileSelector(directory or "/", allow_not_found=True, recursive=recursive)
    try:
        infos: list[fs.FileInfo] = root.filesystem.get_file_info(selector)
    except OSError as error:
        raise StorageFaultError.of(root.uri(directory), "listing", error) from error
    return infos


def _info(filesystem: fs.FileSystem, path: str) -> fs.FileInfo:
    try:
        return filesystem.get_file_info(path)
    except OSError as error:
        raise StorageFaultError.of(path, "looking it up", error) from error


def _lies_below(uri: str, workspace: str | None) -> bool:
    return workspace is not None and unquote(uri).startswith(f"{unquote(workspace).rstrip('/')}/")


def _locate(pattern: str) -> tuple[str, str, str]:
    """A pattern's scheme, its path without percent encoding, and its query; of a local path, only the path."""
    if "://" not in pattern:
        return "", os.path.abspath(pattern), ""
    query = _QUERY.search(pattern)
    end = query.start() if query else len(pattern)
    start = pattern.index("://") + 3
    return pattern[:start], unquote(pattern[start:end]), pattern[end:]


def _uri(location: str, path: str, query: str) -> str:
    return f"{location}{quote(path, safe='/:@', errors='surrogateescape')}{query}" if location else path
