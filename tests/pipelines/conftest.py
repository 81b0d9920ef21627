"""A finished workspace for all tests of the preprocessing jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.preprocessing.small_run import RECIPE, run_all, write_corpus


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A workspace built with one worker: its directory and its recipe."""
    root = tmp_path_factory.mktemp("jobs")
    write_corpus(root / "corpus")
    recipe = root / "small.toml"
    recipe.write_text(RECIPE.format(workspace=root / "workspace", corpus=root / "corpus"))
    run_all(str(recipe))
    return root / "workspace", str(recipe)
