"""How often a fault is repeated: a few times with every test run, many times in `make test-faults`."""

from __future__ import annotations

import os


def rounds(short: int, long: int) -> int:
    """`short`, or `long` where the environment asks for the complete fault suite."""
    return long if os.environ.get("CLOZEWORKS_FAULTS") == "long" else short
