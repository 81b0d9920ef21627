"""Recipes, and the workspaces that the local runner built from them, for all clusters."""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path

import pytest
from tests.support.spark.jobs import JOBS, command, write_mixed_recipe, write_recipe, write_small_recipe


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="session")
def local(recipe: Path) -> Path:
    """A workspace that the local runner built, with two worker processes."""
    return built(recipe)


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_recipe(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def small_local(small_recipe: Path) -> Path:
    return built(small_recipe)


@pytest.fixture(scope="session")
def mixed_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed_recipe(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="session")
def mixed_local(mixed_recipe: Path) -> Path:
    """Every feature of the recipe had an effect."""
    workspace = built(mixed_recipe)
    with gzip.open(workspace / "documents" / "rejected.jsonl.gz", "rt") as stream:
        reasons = {json.loads(line)["reason"] for line in stream}
    assert {"contaminated", "quality-min-words", "quality-duplicate-5-grams"} <= reasons, reasons
    brought = set((mixed_recipe.parent / "vocab.txt").read_text().split())
    added = set((workspace / "vocabulary" / "vocab.txt").read_text().split()) - brought
    assert len(added) == 200
    assert (workspace / "examples" / "expert").is_dir()
    return workspace


def built(recipe: Path) -> Path:
    for job in JOBS:
        subprocess.run(command(job, recipe), check=True)
    return recipe.parent / "workspace"
