"""Progress of a run, as stored in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipelines.statistics.training import Lineage
from training.resuming.recovery import Health


@dataclass(frozen=True)
class Progress:
    """Everything except weights and optimizer that a resumed run needs.

    step: finished optimizer steps over all phases. phase, phase_step: the next step. position: next sample of the
    phase's global order, for any number of ranks. phase_end: that of the previous phase's last step, where the phase
    would continue if it had more steps. health: bad steps so far (training/resuming/recovery.py).
    """

    step: int = 0
    phase: int = 0
    phase_step: int = 0
    position: int = 0
    phase_end: int = 0
    tokens: int = 0
    sequences: int = 0
    seconds: float = 0.0
    world_size: int = 1
    statistics: dict[str, Any] = field(default_factory=dict)
    health: Health = field(default_factory=Health)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        return cls(**{**values, "health": Health.from_json(values["health"])})

    def lineage_in_words(self) -> dict[str, str]:
        """The checkpoints of finished runs that the run was continued from, as a parameter for MLflow."""
        records = [Lineage.model_validate(record) for record in self.statistics.get("lineage", ())]
        return {"lineage": "; ".join(record.in_words() for record in records)} if records else {}
