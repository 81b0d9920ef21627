"""What the tests of training share: synthetic workspaces, a finished run, an encoder with real weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tests.support.training.real_weights import fetch_real_encoder
from tests.support.training.synthetic_run import Workspace, write_workspace

if TYPE_CHECKING:
    from training.engine.processes import Processes


@pytest.fixture(scope="session")
def undisturbed(make_workspace: Callable[[str], Workspace]) -> Workspace:
    """Two ranks, ZeRO stage 2, dropout on, both phases, from start to end."""
    workspace = make_workspace("undisturbed")
    result = workspace.run("training.pretrain", ranks=2)
    assert result.returncode == 0, result.stdout + result.stderr
    return workspace


@pytest.fixture(scope="session")
def make_workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workspace]:
    """Write a fresh synthetic workspace under a name of its own."""
    return lambda name: write_workspace(str(tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="session")
def real_encoder() -> Path:
    """A 6-layer BERT with real weights."""
    try:
        return fetch_real_encoder()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def single_process() -> Iterator[Processes]:
    """A process group of one."""
    from training.engine.processes import start_processes, stop_processes

    before = set(os.environ)
    try:
        yield start_processes()
    finally:
        stop_processes()
        # Where the group met, above all: a command that a later test starts would meet there as well.
        for name in set(os.environ) - before:
            del os.environ[name]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Another number of threads adds up in another order, and gains nothing on tensors of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
