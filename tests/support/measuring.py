"""How all benchmarks measure and report: several rounds, ours and the peer's in turn, medians, one JSON line last."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.support import REPOSITORY

# One thread each, so that CPU time is the work done.
for _variable in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

NOVELS = REPOSITORY.parent / "shared" / "data" / "corpora" / "novels100"


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time of this process for one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def medians(ours: Callable[[], float], peer: Callable[[], float], runs: int) -> tuple[float, float, float]:
    """Medians of ours, of the peer and of their quotients round by round; each call returns a rate."""
    pairs = [(ours(), peer()) for _ in range(runs)]
    return (
        statistics.median(one for one, _ in pairs),
        statistics.median(other for _, other in pairs),
        statistics.median(one / other for one, other in pairs),
    )


def report(name: str, value: float, unit: str, **more: Any) -> None:
    """Print the result as one JSON object on the last line; `ratio` is ours over the peer's, larger is better."""
    facts = {"name": name, "value": round(value, 3), "unit": unit, "peer": None, "peer_value": None, "ratio": None}
    facts |= {"identical": None, "runs": 1} | more
    facts["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(json.dumps({key: round(fact, 3) if isinstance(fact, float) else fact for key, fact in facts.items()}))


def english_paragraphs(size_bytes: int) -> list[str]:
    """Paragraphs of the English novels; without them, docstrings of what is installed, repeated to size."""
    from pipelines.documents.sentences import paragraphs_of

    paragraphs: list[str] = []
    total = 0
    if NOVELS.is_dir():
        for path in sorted(NOVELS.glob("*.txt")):
            for paragraph in paragraphs_of(path.read_text("utf-8-sig", "replace")):
                paragraphs.append(paragraph)
                total += len(paragraph.encode())
            if total >= size_bytes:
                return paragraphs
        return paragraphs
    print("the novels are not here; docstrings take their place", file=sys.stderr)
    from pipelines.reading.source import RawDocument
    from pipelines.settings.documents import SourceConfig
    from pipelines.sources.formats import source_of

    config = SourceConfig(format="python-docstrings", inputs=("stdlib", "numpy", "scipy", "scikit-learn", "torch"))
    reader = source_of(config)
    for file in reader.find(config):
        for item in reader.read(file, config):
            if isinstance(item, RawDocument):
                paragraphs += paragraphs_of(item.text)
    available = sum(map(len, paragraphs))
    return paragraphs * max(1, round(size_bytes / available))
