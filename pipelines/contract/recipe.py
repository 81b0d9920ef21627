"""Read a recipe: one TOML file that describes a complete run, validated section by section.

Each stage validates the sections it needs against the frozen pydantic models of pipelines/settings and
training/settings; `flows.parameters.whole_recipe` validates all of them. A user error is reported in one line that
names the file, the key, the value and the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from pipelines.contract.bounds import Bounded, Processes, UserPath
from pipelines.contract.credentials import refusal
from pipelines.contract.recipe_problems import first_problem, nearest
from pipelines.contract.recipe_text import RecipeError, parse_value, read_file, require_limits, shortened

SECTION_NAMES = (
    "run",
    "preprocessing",
    "documents",
    "vocabulary",
    "examples",
    "model",
    "pretraining",
    "distillation",
    "finetuning",
    "tracking",
)

_OVERRIDE_CHARACTERS = 200
_FIELDS_SET = "__pydantic_fields_set__"

OPERATIONAL: dict[str, JsonValue] = {"operational": True}
"""Marks a field that says how a stage runs, not what it produces: worker counts, logging intervals."""

ADDED: dict[str, JsonValue] = {"added": True}
"""Marks a field that earlier releases did not have, and whose default gives their output: at its default it is left
out of `identity()`, so that their results stay valid."""


class Section(BaseModel):
    """Base of every recipe section: frozen, without unknown keys, no conversion except of lists to tuples.

    A field declared with `json_schema_extra=OPERATIONAL` is left out of `identity()`; changing it rebuilds nothing. One
    with `json_schema_extra=ADDED` is left out while it has its default. A key that is a keyword of Python, such as
    `from`, is the alias of a field: recipes, messages, forms and manifests have the alias.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        strict=True,
        serialize_by_alias=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _lists_as_tuples(cls, values: Any) -> Any:
        return lists_as_tuples(values)

    @classmethod
    def completed(cls, table: dict[str, Any], _recipe: Recipe) -> dict[str, Any]:
        """The section's table before it is validated; a section may add what another section of the recipe names."""
        return table

    def __getstate__(self) -> dict[Any, Any]:
        """As pydantic's, with equal bytes for equal sections: the order of a set differs between processes."""
        state = super().__getstate__()
        return {**state, _FIELDS_SET: sorted(state[_FIELDS_SET])}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__({**state, _FIELDS_SET: set(state[_FIELDS_SET])})

    def identity(self) -> dict[str, Any]:
        """The settings that decide the stage's output, as plain JSON values."""
        result: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            value = getattr(self, name)
            if extra.get("operational") or (extra.get("added") and value == field.get_default()):
                continue
            result[field.alias or name] = _identity_of(value)
        return result


def lists_as_tuples(values: Any) -> Any:
    """Convert the lists of a TOML or JSON table to tuples, as sections hold them; nothing else is converted."""
    if isinstance(values, dict):
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return values


def _identity_of(value: Any) -> Any:
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, (list, tuple)):
        return [_identity_of(item) for item in value]
    return value


class RunConfig(Section):
    """`[run]`: the run's name and its workspace."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)] = "run"
    workspace: UserPath = "workspaces/run"
    workers: Processes = Field(default=0, json_schema_extra=OPERATIONAL)
    """Processes of the local Beam runner; 0 means one per core."""
    local_directory: UserPath | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Where files of a workspace in an object store are staged and built; default: in the user's cache directory."""
    local_directory_bytes: Annotated[
        int, Bounded(100_000_000, 10**15, "less holds no shard of examples, and no machine has more local disk")
    ] = Field(default=200_000_000_000, json_schema_extra=OPERATIONAL)
    """Most bytes of staged files there; the disk's free space bounds them too."""
    euros_per_device_hour: Annotated[float, Bounded(0.0, 1e6, "it is the price of one device for an hour")] | None = (
        Field(default=None, json_schema_extra=OPERATIONAL)
    )
    """Price of one rank's device for an hour (a GPU, or its share of a machine), for the report's costs."""


SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe file with its overrides applied; sections are not validated yet."""

    path: str
    overrides: tuple[str, ...]
    tables: dict[str, dict[str, Any]]

    def section(self, name: str, model: type[SectionT]) -> SectionT:
        """Validate one section against its model; an absent section gets the model's defaults.

        Raises:
            RecipeError: an unknown key, a value out of range, or a missing key, in one line.
        """
        assert name in SECTION_NAMES, name
        try:
            return model.model_validate(model.completed(self.tables.get(name, {}), self))
        except ValidationError as error:
            raise RecipeError(f"{self.path}: " + first_problem(name, model, error)) from error


def read_recipe(path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Parse a recipe file and apply `section.key=value` overrides, in order.

    An override's value is read as TOML and, failing that, as a plain string, so `--set run.name=trial` needs no quotes.

    Raises:
        RecipeError: the file is absent or not TOML, a section is unknown, or an override is malformed.
    """
    tables = read_file(path)
    for name, table in tables.items():
        if name not in SECTION_NAMES:
            raise RecipeError(f"{path}: unknown section [{shortened(name)}]{nearest(name, SECTION_NAMES)}")
        if not isinstance(table, dict):
            value = shortened(repr(table))
            raise RecipeError(f"{path}: {name} = {value} must be a section: write [{name}] above its keys")
    require_limits(path, tables)
    for override in overrides:
        _apply_override(path, tables, override)
    if overrides:
        require_limits("--set", tables)
    if refused := refusal(tables):
        raise RecipeError(f"{path}: {refused}")
    return Recipe(path, tuple(overrides), tables)


def _apply_override(path: str, tables: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    shown = f"--set {shortened(override, _OVERRIDE_CHARACTERS)}"
    if not separator or len(parts) < 2 or not all(parts):
        raise RecipeError(f"{shown}: write it as section.key=value, such as --set pretraining.seed=7")
    if parts[0] not in SECTION_NAMES:
        raise RecipeError(f"{shown}: unknown section {shortened(parts[0])!r}{nearest(parts[0], SECTION_NAMES)}")
    try:
        value = parse_value(text)
    except RecipeError as error:
        raise RecipeError(f"{shown}: {error}") from error
    node: Any = tables.setdefault(parts[0], {})
    for part in parts[1:-1]:
        node = _descend(path, shown, node, part)
    if isinstance(node, list):
        index = _list_index(path, shown, node, parts[-1])
        node[index] = value
    elif isinstance(node, dict):
        node[parts[-1]] = value
    else:
        raise RecipeError(f"{shown}: {'.'.join(parts[:-1])} is a plain value in {path}, it has no {parts[-1]!r}")


def _descend(path: str, shown: str, node: Any, part: str) -> Any:
    if isinstance(node, list):
        return node[_list_index(path, shown, node, part)]
    if isinstance(node, dict):
        return node.setdefault(part, {})
    raise RecipeError(f"{shown}: {part!r} cannot be set below a plain value of {path}")


def _list_index(path: str, shown: str, node: list[Any], part: str) -> int:
    indices = [str(index) for index in range(len(node))]
    if part in indices:
        return indices.index(part)
    remedy = f"use a number from 0 to {len(node) - 1}, not {part!r}" if node else "override the list itself"
    raise RecipeError(f"{shown}: {path} has {len(node)} entries there; {remedy}")
