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
from tests.support.object_store.other_stores import other_store, other_store_server  # noqa: E402, F401 - likewise
from tests.support.object_store.s3_server import s3_server, s3_workspace  # noqa: E402, F401 - fixtures for all tests

# Machines are shared: no test may fail because it took long.
hypothesis.settings.register_profile("clozeworks", deadline=None)
hypothesis.settings.load_profile("clozeworks")

# A script's background commands start with SIGINT ignored, and so would what tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SLOW_FIXTURES = {
    "built",
    "consumer",
    "found",
    "other_store",
    "prefect_server",
    "real_encoder",
    "s3_server",
    "site",
    "undisturbed",
}
"""A test that needs one of these starts servers, jobs or ranks, or downloads, whatever it does itself."""

LONG_FILES = {
    "tests/flows/running/test_remote_chain.py": 360,
    "tests/flows/registry/test_consumers.py": 90,
    "tests/pipelines/jobs/test_jobs.py": 50,
}
"""Seconds of a processor that these files took; they start first, so that no worker waits for one at the end."""
assert all((REPOSITORY / name).exists() for name in LONG_FILES)
_SECONDS_OF_A_SLOW_TEST, _MOST_SECONDS = 2, 45
"""What other files are taken for, with a bound: many slow tests of a file share one fixture."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests with expensive fixtures as slow, and run the files that take longest first."""
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))

    def seconds(path: Path) -> int:
        by_count = min(_SECONDS_OF_A_SLOW_TEST * slow[path], _MOST_SECONDS)
        return LONG_FILES.get(path.relative_to(REPOSITORY).as_posix(), by_count)

    # The sort is stable: the order within a file stays.
    items.sort(key=lambda item: -seconds(item.path))


@pytest.fixture(autouse=True)
def _interrupts_are_heard() -> None:
    """Undo what an earlier test of this process has left: a stop request that records SIGINT, for example."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
