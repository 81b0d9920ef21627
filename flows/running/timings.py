"""Duration of each stage's last build, stored apart from manifests, so that equal runs have equal manifests."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest

FILE_NAME = "timings.json"


class Timing(BaseModel):
    """Seconds of one build, and the digests of what it built, by output."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float
    digests: dict[str, str]


_TIMINGS = TypeAdapter(dict[str, Timing])


def earlier_seconds(workspace: str, stage: str, manifests: Mapping[str, Manifest]) -> float | None:
    """Seconds that building exactly these outputs took; None if they were built outside a flow."""
    timing = _read(workspace).get(stage)
    return timing.seconds if timing and timing.digests == _digests(manifests) else None


def record_seconds(workspace: str, stage: str, manifests: Mapping[str, Manifest], seconds: float) -> None:
    """Store how long a stage took."""
    timings = _read(workspace)
    timings[stage] = Timing(seconds=round(seconds, 2), digests=_digests(manifests))
    data = {name: timing.model_dump(mode="json") for name, timing in sorted(timings.items())}
    storage.write_bytes(storage.join(workspace, FILE_NAME), json.dumps(data, indent=1).encode() + b"\n")


def _read(workspace: str) -> dict[str, Timing]:
    uri = storage.join(workspace, FILE_NAME)
    if storage.file_size_bytes(uri) is None:
        return {}
    try:
        return _TIMINGS.validate_json(storage.read_bytes(uri))
    except ValidationError as error:
        raise InputError(f"{uri}: not a file of timings ({error.errors()[0]['msg']}); delete it") from error


def _digests(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    return {name: manifest.digest for name, manifest in manifests.items()}
