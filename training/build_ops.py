"""Compile DeepSpeed's CPU communication operator ahead of the first run: `python -m training.build_ops`.

DeepSpeed compiles it on first use, which takes minutes on a cold start, and a process killed in between may leave a
`lock` file on which every later run waits forever. So the compiled operators lie in a directory of this installation,
one process at a time loads or builds them under a lock that the kernel releases when its holder dies, and whoever
holds that lock may remove what a dead process left.
"""

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
