"""Number of repetitions of a fault: a few with every test run, many in `make test-faults`."""

from __future__ import annotations

import os


def rounds(short: int, long: int) -> int:
    """`short`, or `long` if the environment selects the complete fault suite."""
    return long if os.environ.get("CLOZEWORKS_FAULTS") == "long" else short
