"""Reduce requirements.lock to what some extras need, hashes included: no resolver, no network, no index address.

    python infra/docker/select_lock.py --extra training --package setuptools > training.lock
    python infra/docker/select_lock.py --package uv > uv.lock

The lock lists under each package which others require it ("# via"). Read backwards, this is the graph of dependencies,
and everything reachable from the extras is selected. If one package requires an extra of a dependency, the parts of
that extra are selected for all packages with this dependency: a little too much, never too little.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(\[[^]]*])?==(?P<version>[^ ;]+)")
_REQUIREMENT_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*")
_VIA = "# via"


@dataclass
class LockedPackage:
    """One package of the lock: its original lines, and which packages require it."""

    lines: list[str]
    parents: list[str] = field(default_factory=list)


def normalized(name: str) -> str:
    """A package's name in the form that PEP 503 compares."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(text: str) -> dict[str, list[LockedPackage]]:
    """Packages by normalised name; one that differs by platform has several entries.

    Raises:
        ValueError: a line belongs to no package, or a package has no parent.
    """
    packages: dict[str, list[LockedPackage]] = {}
    current: LockedPackage | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if match := _PIN.match(line):
            current = LockedPackage([line])
            packages.setdefault(normalized(match["name"]), []).append(current)
        elif not line.strip():
            continue
        elif current is None or not line.startswith(" "):
            raise ValueError(f"line {number}: {line!r} belongs to no package; is this a lock made by `make lock`?")
        else:
            current.lines.append(line)
            comment = line.strip()
            if comment.startswith("#") and (parent := comment.removeprefix(_VIA).strip("# ")):
                current.parents.append(normalized(parent.split(" ")[0]))
    for name, entries in packages.items():
        if not any(entry.parents for entry in entries):
            raise ValueError(f"{name}: has no comment '# via'; make the lock with annotations")
    return packages


def roots_of(pyproject: str, extras: list[str]) -> list[str]:
    """Names of the packages that the project itself and some of its extras require.

    Raises:
        ValueError: there is no such extra.
    """
    project = tomllib.loads(pyproject)["project"]
    known = project["optional-dependencies"]
    if missing := [extra for extra in extras if extra not in known]:
        raise ValueError(f"no extra {', '.join(missing)} in pyproject.toml; known extras: {', '.join(sorted(known))}")
    requirements = [*project["dependencies"], *(line for extra in extras for line in known[extra])]
    names = [match[0] for line in requirements if (match := _REQUIREMENT_NAME.match(line))]
    assert len(names) == len(requirements), requirements
    return names


def select(packages: dict[str, list[LockedPackage]], roots: list[str]) -> list[str]:
    """Names of all packages that the roots need, sorted.

    Raises:
        ValueError: a root is not in the lock.
    """
    children: dict[str, set[str]] = {}
    for name, entries in packages.items():
        for entry in entries:
            for parent in entry.parents:
                children.setdefault(parent, set()).add(name)
    chosen: set[str] = set()
    waiting = [normalized(root) for root in roots]
    if missing := [name for name in waiting if name not in packages]:
        raise ValueError(f"{', '.join(missing)}: not in requirements.lock; run `make lock`")
    while waiting:
        name = waiting.pop()
        if name not in chosen:
            chosen.add(name)
            waiting.extend(children.get(name, ()))
    return sorted(chosen)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra", action="append", default=[], help="an extra of pyproject.toml; may be repeated")
    parser.add_argument("--package", action="append", default=[], help="one more package; may be repeated")
    parser.add_argument("--directory", default=".", help="directory of requirements.lock and pyproject.toml")
    parsed = parser.parse_args(arguments)
    directory = Path(parsed.directory)
    try:
        packages = read_lock((directory / "requirements.lock").read_text())
        roots = list(parsed.package)
        if parsed.extra:
            roots += roots_of((directory / "pyproject.toml").read_text(), parsed.extra)
        if not roots:
            raise ValueError("nothing to select; give --extra or --package")
        chosen = select(packages, roots)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in chosen:
        for entry in packages[name]:
            print("\n".join(entry.lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
