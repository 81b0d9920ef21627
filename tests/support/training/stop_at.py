"""A request to stop that arrives at a chosen step."""

from __future__ import annotations


class Stop:
    """Asks to stop while a given step is under way; 0 never asks."""

    def __init__(self, at_step: int = 0) -> None:
        self._left = at_step

    @property
    def received(self) -> bool:
        self._left -= 1
        return self._left == 0

    def seconds_left(self) -> float:
        return 15.0
