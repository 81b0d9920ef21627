"""What all tests share: where real data may lie beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import REPOSITORY


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real corpora and tasks, which the repository does not hold; tests that need them skip without them."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("real data is not here: no directory shared/data beside the checkout")
    return path
