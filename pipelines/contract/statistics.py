"""Base of the typed statistics of manifests; `pipelines.statistics` has one model per stage.

A writer builds the model and passes it to `StageKey.manifest`; a reader gets it from `Manifest.statistics_as`. Only
what a writer set is stored, so a field with a default may be absent from a manifest.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError


class Statistics(BaseModel):
    """Base of all models: frozen, nothing converted; keys that a model does not know are ignored when it is read."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, use_attribute_docstrings=True)

    def to_json(self) -> dict[str, Any]:
        """The values that were set, as a manifest stores them."""
        return self.model_dump(exclude_unset=True)


class StageWarnings(Statistics):
    """Lines for the person who runs a stage, each with the setting that changes it; any manifest reads as this."""

    warnings: list[str] = []


StatisticsT = TypeVar("StatisticsT", bound=Statistics)


def missing_or_wrong(error: ValidationError) -> str:
    """The first fault of a manifest's statistics, in words: `statistics.lengths.128.tokens is missing`."""
    problem = error.errors(include_url=False)[0]
    name = ".".join(["statistics", *map(str, problem["loc"])])
    return f"{name} is missing" if problem["type"] == "missing" else f"{name}: {problem['msg']}"
