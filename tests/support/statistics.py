"""Statistics of a manifest with the values that a test is about, and zeros elsewhere."""

from __future__ import annotations

from typing import Any, get_origin, get_type_hints

from pipelines.contract.statistics import Statistics, StatisticsT


def statistics_with(model: type[StatisticsT], **values: Any) -> StatisticsT:
    """A model of statistics; each required value that is not given is 0, or empty."""
    types = get_type_hints(model)
    missing = {name for name, field in model.model_fields.items() if field.is_required()} - values.keys()
    return model.model_validate({name: _empty(types[name]) for name in sorted(missing)} | values)


def _empty(kind: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, Statistics):
        return statistics_with(kind)
    return (get_origin(kind) or kind)()
