"""The GPU's kernel for the loss of the output layer, against torch: in Triton's interpreter, as there may be no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("kernel_cases.py")
NUM_CASES = 16


def test_the_kernel_computes_what_torch_does() -> None:
    pytest.importorskip("triton", reason="Triton comes with torch's builds for GPUs")
    # Triton decides when it is imported whether its functions are interpreted.
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout[-4_000:]
    assert f"{NUM_CASES} passed" in ran.stdout
