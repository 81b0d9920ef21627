"""The prose of code and pages keeps to plain technical English: words that have a plain one are not used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PLAIN = {
    "shall": "must, should",
    "beside": "next to",
    "whoever": "the user, the caller",
    "somebody": "the user, the caller",
    "by now": "meanwhile, so far",
    "goes on": "continues, resumes",
    "go on": "continue, resume",
    "tells": "shows, reports, logs",
    "a person": "the user, an operator",
    "lies in": "is in, is stored in",
    "begun from": "initialized from",
}
USED = re.compile(rf"(?<![\w`])({'|'.join(PLAIN)})(?![\w`(])", re.IGNORECASE)
FOLDERS = ("pipelines", "training", "flows", "infra")
SUFFIXES = {".py", ".md", ".toml", ".yaml", ".sh", ".jinja"}


@pytest.mark.parametrize("folder", [*FOLDERS, "."])
def test_words_that_have_a_plain_one_are_not_used(folder: str, repository: Path) -> None:
    paths = sorted((repository / folder).glob("*.md" if folder == "." else "**/*"))
    found = [
        f"{path.relative_to(repository)}:{number}: {match.group(1)} -> {PLAIN[match.group(1).lower()]}"
        for path in paths
        if path.suffix in SUFFIXES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in USED.finditer(line)
    ]
    assert found == []
