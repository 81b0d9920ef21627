"""What is shown of an earlier result that is kept under a numbered name."""

from __future__ import annotations

from datetime import UTC, datetime

from flows.inspection.stage_results import result_in_words
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, read_manifest
from pipelines.results.limits import completed_at_ns
from training.stages.origins import CONTINUED_FROM


def size_bytes_of(directory: str) -> int:
    """Bytes of all files of a result, checkpoints included."""
    return sum(storage.file_size_bytes(storage.join(directory, name)) or 0 for name in storage.list_files(directory))


def kept_in_words(directory: str, manifest: Manifest, result_directory: str) -> tuple[str, dict[str, float]]:
    """Result, time of completion, size, and what the current result has otherwise; and the numbers of these."""
    seconds, size_bytes = completed_at_ns(directory) / 1e9, size_bytes_of(directory)
    words = [
        f"earlier result: {result_in_words(manifest.stage, manifest)}",
        f"completed {datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC",
        storage.in_units(size_bytes),
        *_differences(manifest, result_directory),
    ]
    return ", ".join(words), {"size_bytes": float(size_bytes), "completed_at_seconds": seconds}


def _differences(kept: Manifest, result_directory: str) -> list[str]:
    try:
        result = read_manifest(result_directory)
    except InputError:
        return []
    if result is None:
        return []
    inputs, earlier = ({**each.inputs} for each in (result, kept))
    for each in (inputs, earlier):
        # Shown as lineage.
        each.pop(CONTINUED_FROM, None)
    key = StageKey(result.stage, result.stage_version, result.config, inputs)
    return list(key.changes(kept.model_copy(update={"inputs": earlier})))
