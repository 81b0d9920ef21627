"""What all tests share: one thread a process, the slow marker of expensive fixtures, and where real data may be."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

# Before torch and numba are imported, here and in what tests start: tests run next to one another.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
from tests.support import REPOSITORY  # noqa: E402
from tests.support.object_store.fault_proxy import s3_proxy  # noqa: E402, F401 - a fixture for all tests
from tests.support.object_store.s3_server import s3_server, s3_workspace  # noqa: E402, F401 - fixtures for all tests

# Machines are shared: no test may fail because it took long.
hypothesis.settings.register_profile("clozeworks", deadline=None)
hypothesis.settings.load_profile("clozeworks")

# A script's background commands start with SIGINT ignored, and so would what tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SLOW_FIXTURES = {"built", "consumer", "found", "prefect_server", "real_encoder", "site", "undisturbed"}
"""A test that needs one of these starts servers, jobs or ranks, or downloads, whatever it does itself."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests with expensive fixtures as slow, and run the files with most slow tests first."""
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    # The sort is stable: the order within a file stays. Long files start first: no worker waits at the end.
    items.sort(key=lambda item: -slow[item.path])


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
