"""Lines of `rejected.jsonl.gz`: one for each text that became no document, with source, reason and detail."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable

from pipelines import storage
from pipelines.sources import Reject

REJECTS_NAME = "rejected.jsonl.gz"


def write_rejects(uri: str, rejects: Iterable[Reject]) -> None:
    """Write rejects as a gzip member; members in a row are one file again."""
    lines = (json.dumps(reject.__dict__, ensure_ascii=False, sort_keys=True) + "\n" for reject in rejects)
    storage.write_bytes(uri, gzip.compress("".join(lines).encode(), mtime=0))
