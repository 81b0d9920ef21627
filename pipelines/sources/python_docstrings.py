"""English docstrings of installed Python source, one document per module: a corpus that needs no download.

Source is parsed, never imported. Inputs are `stdlib` and names of installed distributions.
"""

from __future__ import annotations

import ast
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import metadata

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.reading.source import InputFile, RawDocument, Reject
from pipelines.reading.unpacking import open_file
from pipelines.settings.documents import SourceConfig

STDLIB = "stdlib"

_NOT_PROSE = re.compile(r"^\s*(>>>|\.\.\.|\.\. |:param|[-=~^*_+|#]{3,})|^[^A-Za-z]*$")
_TESTS = re.compile(r"(^|/)(tests?|testing|idlelib|lib2to3|site-packages|conftest\.py|test_[^/]*|[^/]*_test\.py)(/|$)")


class PythonDocstrings:
    def find(self, config: SourceConfig, workspace: str | None = None) -> list[InputFile]:
        del workspace
        files: list[InputFile] = []
        for name in config.inputs:
            files += _stdlib_files() if name == STDLIB else _distribution_files(name)
        return sorted(files, key=lambda file: (file.name, file.uri))

    def read(self, file: InputFile, config: SourceConfig) -> Iterator[RawDocument | Reject]:
        del config
        with open_file(file.uri) as stream:
            data = stream.read()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                tree = ast.parse(data)
        except (SyntaxError, ValueError, RecursionError) as error:
            yield Reject(file.name, "syntax-error", str(error))
            return
        # A docstring may hold an escaped half of a surrogate pair, which cannot be encoded.
        text = "\n\n".join(_prose(docstring) for docstring in _docstrings(tree)).encode("utf-8", "replace").decode()
        if text.strip():
            yield RawDocument(file.name, text)
        else:
            yield Reject(file.name, "no-docstrings", "the module documents nothing")


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def _prose(docstring: str) -> str:
    """Drop doctests, directives and rules; a change of indentation starts a new paragraph."""
    lines: list[str] = []
    indentation = 0
    for line in docstring.splitlines():
        if _NOT_PROSE.search(line):
            lines.append("")
            continue
        current = len(line) - len(line.lstrip())
        if current != indentation:
            lines.append("")
            indentation = current
        lines.append(line.strip())
    return "\n".join(lines)


def _stdlib_files() -> list[InputFile]:
    root = sysconfig.get_paths()["stdlib"]
    files: list[InputFile] = []
    for directory, subdirectories, names in os.walk(root):
        prefix = "" if directory == root else os.path.relpath(directory, root).replace(os.sep, "/") + "/"
        # Without tests and site-packages, which may hold ten times as many files as all else.
        subdirectories[:] = [name for name in subdirectories if name[0] != "." and not _TESTS.search(f"{prefix}{name}")]
        for name in names:
            path = os.path.join(directory, name)
            is_source = name.endswith(".py") and name[0] != "." and not _TESTS.search(f"{prefix}{name}")
            if is_source and os.access(path, os.R_OK):
                files.append(InputFile(path, f"{STDLIB}/{prefix}{name}", os.path.getsize(path), 0))
    return files


def _distribution_files(distribution: str) -> list[InputFile]:
    try:
        installed = metadata.distribution(distribution)
    except metadata.PackageNotFoundError as error:
        raise InputError(
            f"documents.sources: no installed distribution is called {distribution!r}; see `pip list`"
        ) from error
    root = str(installed.locate_file(""))
    files = []
    for path in installed.files or []:
        name = str(path)
        if name.endswith(".py") and not name.startswith("..") and not _TESTS.search(name):
            uri = os.path.join(root, name)
            size_bytes = storage.file_size_bytes(uri)
            if size_bytes:
                # An installed file changes with its distribution's version, not with its time of installation.
                files.append(InputFile(uri, name, size_bytes, 0))
    return files
