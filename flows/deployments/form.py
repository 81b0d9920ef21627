"""The form that Prefect's page shows for a deployment: grouped by section, each setting with the recipe's value.

The recipe's values are in the descriptions and are not the form's defaults: the page sends every default with the run,
where it would override another recipe that the user names, or the same one once it has been edited.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from typing import Any

from flows.parameters.forms import nested_section, toml_value
from flows.parameters.whole_recipe import SECTION_MODELS
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import SECTION_NAMES, Section, read_recipe
from pipelines.contract.recipe_problems import fields_by_key

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

_REQUEST = "request"
_OPENING = ("recipe", "workspace")
"""Fields of a request that come first; sections follow, then the settings of how stages are run."""
_INTERNAL = ("parent_run_id",)
"""Set by one flow for another, so not shown in a form."""
_SUMMARY_CHARACTERS, _VALUE_CHARACTERS = 400, 120


def with_recipe(schema: Mapping[str, Any], parameters: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The schema of a flow's parameters as a deployment shows it.

    Args:
        schema: of the flow, with definitions.
        parameters: of the deployment; `request.recipe` names the recipe.

    Returns:
        The schema, and a note for the user: empty, or why the form shows no values.
    """
    shown = copy.deepcopy(dict(schema))
    request = _request_definition(shown)
    for name in _INTERNAL:
        if (hidden := request["properties"].pop(name, None)) is not None:
            # The page shows no such properties, and the server accepts them.
            request.setdefault("patternProperties", {})[f"^{name}$"] = hidden
    # A request without a recipe changes the deployment's own one (flows.parameters.whole_recipe).
    request.pop("required", None)
    recipe = parameters.get(_REQUEST, {}).get("recipe")
    tables, note = _tables_of(recipe)
    for name, model in SECTION_MODELS.items():
        if name in request["properties"]:
            table = tables.get(name, {})
            _describe_section(request["properties"][name], name, recipe, table)
            _describe_settings(shown, request["properties"][name], model, table, _validated(model, table))
    for definition in (shown, *shown["definitions"].values()):
        _number(definition, _request_order(definition) if definition is request else definition.get("properties", {}))
    return shown, note


def request_defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Values that the page fills in for fields of a request that the user has not set."""
    properties = _request_definition(schema)["properties"]
    return {name: each["default"] for name, each in properties.items() if "default" in each}


def _request_definition(schema: Mapping[str, Any]) -> dict[str, Any]:
    definition: dict[str, Any] = schema["definitions"][_name_of(schema["properties"][_REQUEST])]
    return definition


def _name_of(reference: Mapping[str, Any]) -> str:
    """The definition that a property refers to; empty for a plain value."""
    for each in (reference, *reference.get("anyOf", ()), *reference.get("allOf", ())):
        if "$ref" in each:
            return str(each["$ref"]).rpartition("/")[2]
    return ""


def _tables_of(recipe: str | None) -> tuple[dict[str, dict[str, Any]], str]:
    if recipe is None:
        return {}, ""
    try:
        return read_recipe(os.path.join(ROOT, recipe)).tables, ""
    except InputError as error:
        return {}, f"the form shows no recipe values: {error}"


def _validated(model: type[Section], table: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section with its defaults; for a section that is not valid by itself, the recipe's values only."""
    try:
        return model.model_validate(table).model_dump(mode="json")
    except ValueError:
        return table


def _describe_section(field: dict[str, Any], name: str, recipe: str | None, table: Mapping[str, Any]) -> None:
    field["title"] = name.capitalize()
    if recipe is None:
        field["description"] = f"Settings of [{name}]; open to override single settings for this run."
        return
    values = _cut("; ".join(f"{key} = {toml_value(value)}" for key, value in table.items()), _SUMMARY_CHARACTERS)
    field["description"] = f"{recipe} sets: {values or 'nothing'}. Open to override single settings."


def _describe_settings(
    schema: Mapping[str, Any],
    field: Mapping[str, Any],
    section: type[Section],
    table: Mapping[str, Any],
    values: Mapping[str, Any],
) -> None:
    """Prefix the description of each setting with the recipe's value or the default."""
    for key, each in schema["definitions"][_name_of(field)]["properties"].items():
        each.setdefault("title", key.replace("_", " ").capitalize())
        of_recipe = table.get(key)
        nested = nested_section(fields_by_key(section)[key].annotation)
        if nested and _name_of(each):
            inner = of_recipe if isinstance(of_recipe, Mapping) else {}
            default = values.get(key)
            _describe_settings(schema, each, nested, inner, default if isinstance(default, Mapping) else {})
            continue
        if of_recipe is not None:
            said = f"Recipe: {_cut(toml_value(of_recipe), _VALUE_CHARACTERS)}."
        elif key in values:
            value = values[key]
            said = f"Default: {'none' if value is None else _cut(toml_value(value), _VALUE_CHARACTERS)}."
        else:
            said = ""
        explanation = " ".join(str(each.get("description", "")).split())
        each["description"] = " ".join(part for part in (said, explanation) if part)


def _request_order(request: Mapping[str, Any]) -> Iterator[str]:
    names = list(request["properties"])
    yield from (name for name in _OPENING if name in names)
    yield from (name for name in SECTION_NAMES if name in names)
    yield from (name for name in names if name not in _OPENING and name not in SECTION_NAMES)


def _number(definition: dict[str, Any], names: Any) -> None:
    """Order properties in both ways that the page supports: the place in the mapping, and `position`."""
    properties = definition.get("properties", {})
    ordered = {name: properties[name] for name in names}
    for position, each in enumerate(ordered.values()):
        each["position"] = position
    if ordered:
        definition["properties"] = ordered


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
