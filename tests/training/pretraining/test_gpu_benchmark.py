"""The benchmark for a GPU, run on a CPU: the same path, so that it works as it is where a GPU is at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import REPOSITORY


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_it_measures_ours_and_the_peer_on_the_same_rows(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    script = str(REPOSITORY / "tests" / "benchmarks" / "gpu_pretraining.py")
    few = ["--sequences", "4", "--steps", "1", "--rounds", "1", "--settings", "ours", "transformers"]
    result = subprocess.run(
        [sys.executable, script, "--device", "cpu", "--cases", "tiny-64", *few, "--output", str(output)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    facts = json.loads(output.read_text())
    assert facts == json.loads(result.stdout.splitlines()[-1])
    case = facts["cases"]["tiny-64"]
    assert set(case["settings"]) == {"ours", "transformers"}
    # Dropout draws other numbers; the weights and rows are the same.
    losses = [setting["first_loss"] for setting in case["settings"].values()]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    assert case["mean_tokens_per_sequence"] < 64
    assert case["best_ours_over_best_transformers"] > 0
