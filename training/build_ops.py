"""Compile DeepSpeed's CPU communication operator ahead of the first run: `python -m training.build_ops`."""

from __future__ import annotations

import os
import sys
import time

from pipelines.contract.errors import exit_code_of
from training.engine.communication_op import extensions_directory, load_communication_operator


def main() -> int:
    started = time.monotonic()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    built = load_communication_operator()
    state = "ready" if built else "not available on this platform, gloo is used"
    seconds = time.monotonic() - started
    print(f"build_ops: CPU communication operator {state} in {extensions_directory()} ({seconds:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
