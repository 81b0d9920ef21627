"""What people set on Prefect's page: told apart from what prefect.yaml says by comparing with the last deployment.

A value on the server that differs from the one that was last deployed is a person's and stays. One that does not is
brought up to date. Where nothing is known of the last deployment, every difference counts as a person's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from prefect.client.schemas.schedules import SCHEDULE_TYPES, CronSchedule, IntervalSchedule, NoSchedule

ABSENT: Final = "\x00absent"
"""Stands for a key that is not there; no value of a deployment equals it."""
UNKNOWN: Final = "\x00unknown"
"""Stands for what was last deployed where no record of it exists."""
_JOB_VARIABLES = "job_variables"
"""Environment variables of a job may be credentials: their values are never printed."""

Schedule = SCHEDULE_TYPES


@dataclass(frozen=True)
class Edit:
    """A value that a person set: `here` on the server, `in_file` in prefect.yaml."""

    path: str
    here: Any
    in_file: Any

    def __str__(self) -> str:
        if self.path.startswith(_JOB_VARIABLES):
            return f"{self.path} (differs from prefect.yaml)"
        return f"{self.path} = {_shown(self.here)} (prefect.yaml: {_shown(self.in_file)})"


def merge(last: Any, here: Any, new: Any, path: str = "") -> tuple[Any, list[Edit]]:
    """What a deployment gets: people's values where they set some, the file's elsewhere; mappings key by key.

    Args:
        last: what was last deployed; UNKNOWN where no record of it exists.
        here: what the server has.
        new: what the file says.
        path: of these values, for the edits.
    """
    if isinstance(here, Mapping) and isinstance(new, Mapping):
        result: dict[str, Any] = {}
        edits: list[Edit] = []
        for key in dict.fromkeys([*new, *here]):
            before = UNKNOWN if last == UNKNOWN else last.get(key, ABSENT) if isinstance(last, Mapping) else ABSENT
            inner = f"{path}.{key}" if path else key
            value, found = merge(before, here.get(key, ABSENT), new.get(key, ABSENT), inner)
            edits += found
            if value != ABSENT:
                result[key] = value
        return result, edits
    if _same(here, new):
        return here, []
    if last != UNKNOWN and _same(here, last):
        return new, []
    return here, [Edit(path, here, new)]


def _same(one: Any, other: Any) -> bool:
    # The page writes null for what is not filled in.
    return bool(_plain(one) == _plain(other))


def _plain(value: Any) -> Any:
    """The value without keys that hold nothing."""
    if isinstance(value, Mapping):
        plain = {key: _plain(item) for key, item in value.items()}
        return {key: item for key, item in plain.items() if item is not None} or None
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if value == ABSENT else value


def _shown(value: Any) -> str:
    if value is None or value == ABSENT:
        return "none"
    return value if isinstance(value, str) and value.isprintable() and value.isascii() else json.dumps(value)


def schedule_in_words(schedule: Schedule) -> str:
    """A schedule as one line that differs where the schedules do."""
    if isinstance(schedule, NoSchedule):
        return "never"
    zone = schedule.timezone or "UTC"
    if isinstance(schedule, CronSchedule):
        either = "" if schedule.day_or else ", day of month and day of week both"
        return f"cron {schedule.cron} {zone}{either}"
    if isinstance(schedule, IntervalSchedule):
        return f"every {schedule.interval} from {schedule.anchor_date.isoformat()} {zone}"
    return f"rrule {schedule.rrule} {zone}"
