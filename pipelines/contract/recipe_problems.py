"""Report the first mistake in a section in one line: key, value, what is expected, and why."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pipelines.contract.bounds import NAME_PATTERN, Bounded, bounds_of
from pipelines.contract.recipe_text import shortened

_OUT_OF_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false, without quotes",
    "string_type": "text in quotes",
    "model_type": "a table of settings, such as { key = value }",
    "model_attributes_type": "a table of settings, such as { key = value }",
    "dict_type": "a table of settings, such as { key = value }",
}


def first_problem(section: str, model: type[BaseModel], error: ValidationError) -> str:
    """`section.key = value: problem`, for the first of a section's mistakes."""
    problems = error.errors(include_url=False)
    # A list whose only entry is invalid is also reported as empty.
    problems = [problem for problem in problems if problem["type"] != "too_short" or not problem["input"]]
    problem = problems[0]
    key = ".".join([section, *(shortened(str(part)) for part in problem["loc"])])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        known = _model_at(model, problem["loc"][:-1])
        close = nearest(str(problem["loc"][-1]), list(fields_by_key(known))) if known else ""
        return f"{key} = {_shown(problem['input'])}: unknown key{close}{more}"
    if problem["type"] == "missing":
        return f"{key}: is required and missing; add it under [{section}]{more}"
    if problem["type"] == "value_error" and not problem["loc"]:
        return f"[{section}] {_message(problem, None)}{more}"
    return f"{key} = {_shown(problem['input'])}: {_message(problem, _field_at(model, problem['loc']))}{more}"


def _message(problem: ErrorDetails, field: FieldInfo | None) -> str:
    bounds = bounds_of(field) if field else None
    if problem["type"] in _OUT_OF_BOUNDS and bounds:
        return f"must be {bounds}"
    if problem["type"] in ("tuple_type", "list_type"):
        return f"must be a list, such as [{_shown(problem['input'])}]"
    if problem["type"] in ("string_too_short", "too_short"):
        return "must not be empty"
    if problem["type"] == "string_pattern_mismatch" and problem["ctx"]["pattern"] == NAME_PATTERN:
        return "must be letters, digits, hyphens and underscores, a letter first"
    if problem["type"] == "literal_error":
        expected = problem["ctx"]["expected"]
        close = difflib.get_close_matches(
            f"'{shortened(str(problem['input']))}'", expected.replace(" or ", ", ").split(", "), n=1
        )
        return f"must be {expected}" + (f"; did you mean {close[0]}?" if close else "")
    if expected := _EXPECTED.get(problem["type"]):
        return f"must be {expected}{_hint(problem, bounds)}"
    return problem["msg"].removeprefix("Value error, ")


def _hint(problem: ErrorDetails, bounds: Bounded | None) -> str:
    """How to write a value of the right type."""
    value = problem["input"]
    if problem["type"] == "string_type" and isinstance(value, int | float):
        return f': "{_shown(value)}", and on a command line \'...="{_shown(value)}"\''
    if isinstance(value, str) and problem["type"] in ("int_type", "float_type"):
        return f" without quotes, {bounds}" if bounds else " without quotes"
    return f", {bounds}" if bounds else ""


def nearest(name: str, valid: Sequence[str]) -> str:
    """The valid name that was probably meant; all of them if none is close."""
    close = difflib.get_close_matches(shortened(name), valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid names: {', '.join(sorted(valid))}"


def fields_by_key(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a section by their keys in a recipe."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _model_at(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    """The section model that a validation error's location is in."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            continue
        field = fields_by_key(current).get(part) if current else None
        current = _nested_model(field.annotation) if field else None
    return current


def _field_at(model: type[BaseModel], location: Sequence[int | str]) -> FieldInfo | None:
    """The field that a validation error's location names, or whose list it is in."""
    names = [place for place, part in enumerate(location) if isinstance(part, str)]
    if not names:
        return None
    owner = _model_at(model, location[: names[-1]])
    return fields_by_key(owner).get(str(location[names[-1]])) if owner else None


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if nested := _nested_model(argument):
            return nested
    return None


def _shown(value: Any) -> str:
    return shortened(json.dumps(value, ensure_ascii=False, default=str))
