"""Find local files that match a pattern, without listing directories that the pattern excludes.

Links are followed if they lead to something below the directory that the input names, and no file is found twice
through them. What matches and cannot be read (a link that leads elsewhere or nowhere, a name that is not UTF-8, a
directory that may not be listed) is returned as a problem, which is counted and reported with the rejects.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pipelines.contract.errors import InputError
from pipelines.contract.shown_text import shown
from pipelines.inputs.globs import Pattern, regex_of
from pipelines.inputs.own_results import OwnResults, is_stage
from pipelines.reading.unpacking import StorageFaultError


class LocalFile(NamedTuple):
    """A file below a directory, or why it cannot be read: a reason and a detail."""

    relative: str
    size_bytes: int = 0
    modified_ns: int = 0
    problem: tuple[str, str] | None = None


@dataclass(frozen=True)
class _Place:
    """A directory to search: its path below the root, its path without links, and its number of levels."""

    relative: str
    real: str
    depth: int

    @property
    def name(self) -> str:
        return self.relative.rstrip("/").rpartition("/")[2]

    def below(self, name: str) -> _Place:
        return _Place(f"{self.relative}{name}/", os.path.join(self.real, name), self.depth + 1)


class LocalFiles:
    """One search below a directory."""

    def __init__(self, root: str, pattern: Pattern, own_results: OwnResults):
        self._root = os.path.realpath(root)
        self._pattern = pattern
        self._own_results = own_results
        self._name_regexes = [regex_of(name) for name in pattern.names]
        self._rest_regex = regex_of(pattern.rest) if pattern.rest is not None else None
        self._directories = [_Place("", self._root, 0)]
        self._links: list[tuple[_Place, os.DirEntry[str]]] = []
        self._seen: set[str] = set()
        self._visited: set[tuple[str, int, str]] = set()

    def find(self) -> Iterator[LocalFile]:
        """All matches; of a file with several names, the one without links.

        Raises:
            InputError: the root may not be listed.
            StorageFaultError: a directory cannot be listed for any other reason than a missing permission.
        """
        while self._directories or self._links:
            while self._directories:
                yield from self._visit(self._directories.pop())
            # Links come last, so that a file's own name takes precedence over links to it.
            links = sorted(self._links, key=lambda link: link[0].relative + link[1].name)
            self._links.clear()
            for place, entry in links:
                yield from self._follow(place, entry)

    def _visit(self, place: _Place) -> Iterator[LocalFile]:
        # A link to a parent directory would otherwise be followed forever.
        key = (place.real, min(place.depth, len(self._pattern.names)), place.name)
        if key in self._visited:
            return
        self._visited.add(key)
        try:
            with os.scandir(place.real) as scan:
                entries = {entry.name: entry for entry in scan}
        except PermissionError as error:
            if not place.depth:
                raise InputError(
                    f"documents.sources: {shown(place.real)}: permission to list it is denied; run `chmod +rx`"
                ) from error
            yield from self._problem(place, "", "unreadable", "this directory may not be listed")
            return
        except OSError as error:
            raise StorageFaultError.of(place.real, "listing", error) from error
        left_out = self._left_out(place, entries)
        if left_out is None:
            return
        for name in sorted(entries.keys() - left_out):
            if self._is_wanted(place, name, entries):
                yield from self._look_at(place, entries[name])

    def _left_out(self, place: _Place, names: dict[str, os.DirEntry[str]]) -> set[str] | None:
        """Own results among the names of a directory; None if the directory itself is one."""
        if place.depth:
            return None if self._own_results.is_left_out(place.real, names) else set()
        return None if is_stage(place.real, names) else self._own_results.names_in_root(place.real, names)

    def _is_wanted(self, place: _Place, name: str, names: dict[str, os.DirEntry[str]]) -> bool:
        """Whether the name matches at this place, as a directory to search or as a file."""
        wanted = self._wanted_name(place)
        if name.startswith(".") and not wanted.startswith("."):
            return False
        if place.depth >= len(self._pattern.names):
            return True
        return name == wanted if wanted in names else self._name_regexes[place.depth].fullmatch(name) is not None

    def _wanted_name(self, place: _Place) -> str:
        names = self._pattern.names
        return names[place.depth] if place.depth < len(names) else self._pattern.last_name

    def _look_at(self, place: _Place, entry: os.DirEntry[str]) -> Iterator[LocalFile]:
        if entry.is_symlink():
            self._links.append((place, entry))
        elif entry.is_dir(follow_symlinks=False):
            if self._is_descended(place):
                self._directories.append(place.below(entry.name))
        elif entry.is_file(follow_symlinks=False) and self._matches(place, entry.name):
            yield from self._file(place, entry.name, os.path.join(place.real, entry.name))

    def _is_descended(self, place: _Place) -> bool:
        return self._rest_regex is not None or place.depth < len(self._pattern.names) - 1

    def _matches(self, place: _Place, name: str) -> bool:
        """Whether a file matches here; names before the rest that crosses directories are already matched."""
        if self._rest_regex is None:
            return place.depth == len(self._pattern.names) - 1
        if place.depth < len(self._pattern.names):
            return False
        last = self._pattern.last_name
        if last and "[" in last and os.path.lexists(os.path.join(place.real, last)):
            return name == last
        below = "/".join([*place.relative.split("/")[len(self._pattern.names) : -1], name])
        return self._rest_regex.fullmatch(below) is not None

    def _follow(self, place: _Place, entry: os.DirEntry[str]) -> Iterator[LocalFile]:
        real = os.path.realpath(os.path.join(place.real, entry.name))
        try:
            is_directory, is_file = entry.is_dir(), entry.is_file()
        except OSError as error:
            # A loop of links, or a directory on the way that may not be searched.
            if self._matches(place, entry.name):
                detail = f"this link cannot be followed ({error.strerror})"
                yield from self._problem(place, entry.name, "broken-link", detail)
            return
        if is_directory and self._is_descended(place):
            if self._is_inside(real):
                self._directories.append(_Place(f"{place.relative}{entry.name}/", real, place.depth + 1))
            else:
                yield from self._problem(place, entry.name, "outside-link", _OUTSIDE)
        elif not is_directory and self._matches(place, entry.name):
            if is_file and self._is_inside(real):
                yield from self._file(place, entry.name, real)
            elif is_file:
                yield from self._problem(place, entry.name, "outside-link", _OUTSIDE)
            elif not os.path.lexists(real):
                yield from self._problem(place, entry.name, "broken-link", "this link leads to nothing")

    def _is_inside(self, real: str) -> bool:
        return real == self._root or real.startswith(f"{self._root.rstrip('/')}/")

    def _file(self, place: _Place, name: str, real: str) -> Iterator[LocalFile]:
        if real in self._seen:
            return
        relative = place.relative + name
        if not _is_utf8(relative):
            yield from self._problem(place, name, "name-not-utf-8", "no UTF-8, which names of files must be; rename it")
            return
        self._seen.add(real)
        try:
            status = os.stat(real)
        except FileNotFoundError:
            # Removed while its directory was listed, so it is not an input of this run.
            return
        yield LocalFile(relative, status.st_size, status.st_mtime_ns)

    def _problem(self, place: _Place, name: str, reason: str, detail: str) -> Iterator[LocalFile]:
        real = os.path.join(place.real, name)
        if real not in self._seen:
            self._seen.add(real)
            yield LocalFile(shown(place.relative + name).rstrip("/"), problem=(reason, detail))


_OUTSIDE = "this link leads out of the directory that the input names; name the place that it leads to in inputs"


def _is_utf8(name: str) -> bool:
    return re.search("[\ud800-\udfff]", name) is None
