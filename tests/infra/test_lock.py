"""The packages of an image are a complete part of the lock."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.support import REPOSITORY


def selected(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "infra" / "docker" / "select_lock.py"), "--directory", str(REPOSITORY)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def names_in(lock: str) -> set[str]:
    return {canonicalize_name(match[1]) for match in re.finditer(r"^([A-Za-z0-9][^ =\[]*)", lock, re.M)}


def image_commands() -> list[list[str]]:
    """The arguments of every call of select_lock.py in the Dockerfiles."""
    texts = [path.read_text() for path in sorted((REPOSITORY / "infra" / "docker").glob("*.Dockerfile"))]
    return [match.split() for text in texts for match in re.findall(r"select_lock\.py (.*?) >", text)]


@pytest.mark.parametrize("arguments", image_commands(), ids=lambda arguments: "-".join(arguments[1::2]))
def test_all_that_the_chosen_packages_need_is_chosen(arguments: list[str]) -> None:
    result = selected(*arguments)
    assert result.returncode == 0, result.stderr
    chosen = names_in(result.stdout)
    for name in chosen:
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        for requirement in map(Requirement, requirements):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in chosen, f"{name} needs {requirement}"


def test_hashes_stay_and_other_extras_do_not_come_along() -> None:
    lock = selected("--extra", "pipelines").stdout
    whole = (REPOSITORY / "requirements.lock").read_text()
    for block in re.split(r"\n(?=\S)", lock.rstrip("\n")):
        assert block in whole
        assert "--hash=sha256:" in block
    assert not {"torch", "prefect", "mlflow", "pytest"} & names_in(lock)
    assert {"apache-beam", "numba", "pyarrow", "pydantic"} <= names_in(lock)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("--extra", "trainings"), "no extra trainings"), (("--package", "left-pad"), "left-pad"), ((), "--extra")],
)
def test_a_mistake_is_told_in_one_line(arguments: tuple[str, ...], told: str) -> None:
    result = selected(*arguments)
    assert result.returncode == 2
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1
