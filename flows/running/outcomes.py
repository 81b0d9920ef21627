"""Results of stages and flows."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StageOutcome(BaseModel):
    """Result of a stage. seconds: of its last build; None if unknown."""

    model_config = ConfigDict(frozen=True)

    stage: str
    built: bool
    seconds: float | None
    mlflow_run_id: str
    directories: dict[str, str]


class RegisteredModel(BaseModel):
    """A version in the registry that this run registered or found."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    alias: str
    new: bool

    @property
    def uri(self) -> str:
        return f"models:/{self.name}@{self.alias}"


class FlowOutcome(BaseModel):
    """Stages that a flow built or skipped, and models that it registered: paths and names, never data."""

    model_config = ConfigDict(frozen=True)

    stages: tuple[StageOutcome, ...] = ()
    models: tuple[RegisteredModel, ...] = ()

    def __add__(self, other: FlowOutcome) -> FlowOutcome:
        return FlowOutcome(stages=self.stages + other.stages, models=self.models + other.models)


def shown_seconds(seconds: float) -> str:
    """A duration in words: `4.2 s`, `41 s`, `12 min 3 s`, `5 h 12 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
