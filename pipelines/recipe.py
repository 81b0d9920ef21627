"""Read a recipe: one TOML file that describes a whole run, checked section by section.

Each stage validates the sections it needs against the frozen pydantic models that live beside the code they
configure; `flows.whole_recipe` validates all of them. A mistake is reported in one line that names the file, the key,
the value and the remedy.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from pipelines.credentials import refusal

SECTION_NAMES = (
    "run",
    "documents",
    "vocabulary",
    "examples",
    "model",
    "pretraining",
    "distillation",
    "finetuning",
    "tracking",
)

EXIT_BAD_INPUT = 2

OPERATIONAL: dict[str, JsonValue] = {"operational": True}
"""Marks a field that says how a stage runs, not what it produces: worker counts, logging intervals."""


class InputError(ValueError):
    """A mistake in what a person gave us (recipe, path, data): shown as one line, without a traceback."""


class RecipeError(InputError):
    """A mistake in a recipe file or in a `--set` override."""


class Section(BaseModel):
    """Base of every recipe section: frozen, unknown keys refused.

    A field declared with `json_schema_extra=OPERATIONAL` is left out of `identity()`; changing it rebuilds nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def identity(self) -> dict[str, Any]:
        """The settings that decide the stage's output, as plain JSON values."""
        result: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("operational"):
                continue
            result[name] = _identity_of(getattr(self, name))
        return result


def _identity_of(value: Any) -> Any:
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, (list, tuple)):
        return [_identity_of(item) for item in value]
    return value


class RunConfig(Section):
    """`[run]`: the run's name and where its workspace lies."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    workspace: str = Field("workspaces/run", min_length=1)
    workers: int = Field(0, ge=0, json_schema_extra=OPERATIONAL)
    """Processes of the local Beam runner; 0 means one per core."""


SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe file with its overrides applied; sections are still unchecked."""

    path: str
    overrides: tuple[str, ...]
    tables: dict[str, dict[str, Any]]

    def section(self, name: str, model: type[SectionT]) -> SectionT:
        """Check one section against its model; a section that the file leaves out takes the model's defaults.

        Raises:
            RecipeError: an unknown key, a value out of range, or a missing key, in one line.
        """
        assert name in SECTION_NAMES, name
        try:
            return model.model_validate(self.tables.get(name, {}))
        except ValidationError as error:
            raise RecipeError(f"{self.path}: " + _first_problem(name, model, error)) from error


def read_recipe(path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Parse a recipe file and apply `section.key=value` overrides, in order.

    An override's value is read as TOML and, failing that, as a plain string, so `--set run.name=trial` needs no quotes.

    Raises:
        RecipeError: the file is absent or not TOML, a section is unknown, or an override is malformed.
    """
    try:
        with open(path, "rb") as stream:
            tables = tomllib.load(stream)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise RecipeError(f"{path}: no such recipe file; the ready-made ones are in flows/recipes/") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error
    for name, table in tables.items():
        if name not in SECTION_NAMES:
            raise RecipeError(f"{path}: unknown section [{name}]{_nearest(name, SECTION_NAMES)}")
        if not isinstance(table, dict):
            raise RecipeError(f"{path}: {name} = {table!r} must be a section: write [{name}] above its keys")
    for override in overrides:
        _apply_override(path, tables, override)
    if refused := refusal(tables):
        raise RecipeError(f"{path}: {refused}")
    return Recipe(path, tuple(overrides), tables)


def _apply_override(path: str, tables: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or len(parts) < 2 or not all(parts):
        raise RecipeError(f"--set {override}: write it as section.key=value, such as --set pretraining.seed=7")
    if parts[0] not in SECTION_NAMES:
        raise RecipeError(f"--set {override}: unknown section {parts[0]!r}{_nearest(parts[0], SECTION_NAMES)}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    node: Any = tables.setdefault(parts[0], {})
    for part in parts[1:-1]:
        node = _descend(path, override, node, part)
    if isinstance(node, list):
        index = _list_index(path, override, node, parts[-1])
        node[index] = value
    elif isinstance(node, dict):
        node[parts[-1]] = value
    else:
        raise RecipeError(
            f"--set {override}: {'.'.join(parts[:-1])} is a plain value in {path}, it has no {parts[-1]!r}"
        )


def _descend(path: str, override: str, node: Any, part: str) -> Any:
    if isinstance(node, list):
        return node[_list_index(path, override, node, part)]
    if isinstance(node, dict):
        return node.setdefault(part, {})
    raise RecipeError(f"--set {override}: {part!r} cannot be set below a plain value of {path}")


def _list_index(path: str, override: str, node: list[Any], part: str) -> int:
    if part.isdecimal() and int(part) < len(node):
        return int(part)
    raise RecipeError(
        f"--set {override}: {path} has {len(node)} entries there; use a number from 0 to {len(node) - 1}, not {part!r}"
    )


def _nearest(name: str, valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid names: {', '.join(sorted(valid))}"


def _first_problem(section: str, model: type[BaseModel], error: ValidationError) -> str:
    problem = error.errors()[0]
    location = [section, *(str(part) for part in problem["loc"] if not str(part).startswith("function-"))]
    key, more = ".".join(location), ""
    if error.error_count() > 1:
        more = f" (and {error.error_count() - 1} more)"
    if problem["type"] == "extra_forbidden":
        known = _model_at(model, problem["loc"][:-1])
        nearest = _nearest(str(problem["loc"][-1]), list(known.model_fields)) if known else ""
        return f"{key} = {_shown(problem['input'])}: unknown key{nearest}{more}"
    if problem["type"] == "missing":
        return f"{key}: is required and missing; add it under [{section}]{more}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("tuple_type", "list_type"):
        message = f"must be a list, such as [{_shown(problem['input'])}]"
    if problem["type"] == "value_error" and len(location) == 1:
        return f"[{section}] {message}{more}"
    return f"{key} = {_shown(problem['input'])}: {message}{more}"


def _model_at(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    """The section model that a validation error's location lies in."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part) if current else None
        current = _nested_model(field.annotation) if field else None
    return current


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if nested := _nested_model(argument):
            return nested
    return None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every stage's command shares: the recipe's path, `--set` and `--workspace`."""
    parser.add_argument("recipe", help="recipe file (TOML), such as flows/recipes/demo.toml")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        help="override one setting of the recipe; may be repeated",
    )
    parser.add_argument("--workspace", help="directory of the run; overrides run.workspace")


def recipe_from_arguments(arguments: argparse.Namespace) -> Recipe:
    """Read the recipe that `add_recipe_arguments` asked for, overrides applied."""
    overrides = list(arguments.overrides)
    if arguments.workspace:
        overrides.append(f"run.workspace={json.dumps(arguments.workspace)}")
    return read_recipe(arguments.recipe, overrides)


def exit_code_of(main: Callable[[], int | None]) -> int:
    """Run a command's main and turn a person's mistake into one line on stderr and exit code 2."""
    try:
        return main() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
