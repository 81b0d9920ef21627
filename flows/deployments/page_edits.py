"""Detect what users set on Prefect's page, by comparing the server's values with those last deployed.

A value on the server that differs from the one last deployed was set by a user and is kept. Any other value is
updated. If the last deployment is unknown, every difference counts as set by a user.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from prefect.client.schemas.schedules import SCHEDULE_TYPES, CronSchedule, IntervalSchedule, NoSchedule

ABSENT: Final = "\x00absent"
"""Marks an absent key; no value of a deployment equals it."""
UNKNOWN: Final = "\x00unknown"
"""Stands for the last deployment if no record of it exists."""
_JOB_VARIABLES = "job_variables"
"""Environment variables of a job may be credentials: their values must never be printed."""

Schedule = SCHEDULE_TYPES


@dataclass(frozen=True)
class Edit:
    """A value that a user set: `here` on the server, `in_file` in prefect.yaml."""

    path: str
    here: Any
    in_file: Any

    def __str__(self) -> str:
        if self.path.startswith(_JOB_VARIABLES):
            return f"{self.path} (differs from prefect.yaml)"
        return f"{self.path} = {_shown(self.here)} (prefect.yaml: {_shown(self.in_file)})"


def merge(last: Any, here: Any, new: Any, path: str = "") -> tuple[Any, list[Edit]]:
    """Merge values for a deployment: those that users set are kept, others come from the file; mappings key by key.

    Args:
        last: values of the last deployment; UNKNOWN if no record of it exists.
        here: values on the server.
        new: values of the file.
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
    # The page writes null for fields that are not filled in.
    return bool(_plain(one) == _plain(other))


def _plain(value: Any) -> Any:
    """The value without its empty keys."""
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
    """A schedule as one line; different schedules give different lines."""
    if isinstance(schedule, NoSchedule):
        return "never"
    zone = schedule.timezone or "UTC"
    if isinstance(schedule, CronSchedule):
        either = "" if schedule.day_or else ", day of month and day of week both"
        return f"cron {schedule.cron} {zone}{either}"
    if isinstance(schedule, IntervalSchedule):
        return f"every {schedule.interval} from {schedule.anchor_date.isoformat()} {zone}"
    return f"rrule {schedule.rrule} {zone}"
