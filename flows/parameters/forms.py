"""Recipe sections as forms: a setting that is filled in overrides the recipe, an empty one keeps its value.

The forms are generated from the sections themselves, so Prefect's page shows every setting with its explanation and
its bounds, and there is no second list of settings.
"""

from __future__ import annotations

import json
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from pipelines.contract.recipe import Section, lists_as_tuples


class SectionForm(BaseModel):
    """Base class of all forms: settings of one section; None keeps the recipe's value."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True, serialize_by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _lists_as_tuples(cls, values: Any) -> Any:
        return lists_as_tuples(values)

    def overrides(self, section: str) -> list[str]:
        """The settings that are filled in, as `section.key=value` with TOML values."""
        found: list[str] = []
        for key, name in _names_by_key(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, SectionForm):
                found += value.overrides(f"{section}.{key}")
            elif value is not None:
                found.append(f"{section}.{key}={toml_value(value)}")
        return found


@lru_cache(maxsize=64)
def form_of(section: type[Section]) -> type[SectionForm]:
    """The form of a section; nested sections become forms too, lists of sections remain lists of complete ones."""
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        annotation = field.annotation
        nested = nested_section(annotation)
        kept: Any = form_of(nested) if nested else annotation
        if field.metadata and not nested:
            # The bounds stay on the value, so that they do not apply to None.
            kept = Annotated[(annotation, *field.metadata)]
        fields[name] = (kept | None, Field(default=None, alias=field.alias, description=field.description))
    return create_model(
        f"{section.__name__.removesuffix('Config')}Form", __base__=SectionForm, __doc__=section.__doc__, **fields
    )


def toml_value(value: Any) -> str:
    """A value as TOML on one line; keys that are None are omitted, since TOML has no null."""
    if isinstance(value, BaseModel):
        return toml_value(value.model_dump(mode="json", exclude_unset=True))
    if isinstance(value, dict):
        items = (f"{toml_value(key)} = {toml_value(item)}" for key, item in value.items() if item is not None)
        return "{ " + ", ".join(items) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    # Of JSON's escapes TOML lacks only surrogate pairs; of the characters that TOML forbids, JSON leaves only DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _names_by_key(form: type[SectionForm]) -> dict[str, str]:
    return {field.alias or name: name for name, field in form.model_fields.items()}


def nested_section(annotation: Any) -> type[Section] | None:
    """The section model of a field, also of an optional one; None for other fields."""
    if get_origin(annotation) in (Union, UnionType):
        left = [argument for argument in get_args(annotation) if argument is not NoneType]
        annotation = left[0] if len(left) == 1 else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None
