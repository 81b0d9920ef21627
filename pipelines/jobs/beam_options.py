"""Beam's pipeline options, from the command line and from the recipe, checked by Beam's own parser."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr

from apache_beam.options.pipeline_options import PipelineOptions
from pydantic import JsonValue

from pipelines.contract.errors import InputError

_SEE = "see Beam's documentation of its pipeline options"


def pipeline_options(arguments: Sequence[str]) -> PipelineOptions:
    """Beam options from the arguments that a command does not know.

    Raises:
        InputError: neither the command nor Beam knows an argument, or Beam cannot parse it.
    """
    options, problem = _parsed(arguments)
    if problem is not None:
        raise InputError(f"Beam's options: {problem}; {_SEE}")
    known = options.get_all_options(drop_default=False)
    for argument in arguments:
        name = argument.split("=", 1)[0].lstrip("-")
        if argument.startswith("--") and name not in known and name.removeprefix("no_") not in known:
            raise InputError(f"{argument}: neither this command nor Beam has this option; see --help")
    return options


def arguments_of_recipe(path: str, options: Mapping[str, JsonValue]) -> list[str]:
    """`preprocessing.options` as arguments of Beam's command line, each checked by itself.

    Args:
        path: of the recipe, for messages.
        options: values by Beam's own names.

    Raises:
        InputError: Beam has no such option, or cannot parse its value.
    """
    found: list[str] = []
    known = PipelineOptions([]).get_all_options(drop_default=False)
    for name, value in options.items():
        key = f"{path}: preprocessing.options.{name}"
        if name not in known and name.removeprefix("no_") not in known:
            raise InputError(f"{key}: Beam has no such option; {_SEE}")
        arguments = _arguments_of(name, value, known)
        if arguments is None:
            raise InputError(f"{key} = {value!r}: Beam has no argument that gives it; {_SEE}")
        _, problem = _parsed(arguments)
        if problem is not None:
            raise InputError(f"{key} = {value!r}: {problem}; {_SEE}")
        found += arguments
    return found


def _arguments_of(name: str, value: JsonValue, known: Mapping[str, object]) -> list[str] | None:
    """Arguments that give an option its value; None if Beam has none. A flag that is off by itself needs none."""
    if isinstance(value, list):
        return [f"--{name}={item}" for item in value]
    if value is True:
        # A few of Beam's options are false by default and still expect a value.
        needs_value = known.get(name) is False and _parsed([f"--{name}"])[1] is not None
        return [f"--{name}=True" if needs_value else f"--{name}"]
    if value is False and known.get(name) is False:
        return []
    if value is False:
        options, problem = _parsed([f"--no_{name}"])
        if problem is None and options.get_all_options().get(name) is False:
            return [f"--no_{name}"]
        return [] if known.get(name) is None else None
    return [f"--{name}={value}"]


def _parsed(arguments: Sequence[str]) -> tuple[PipelineOptions, str | None]:
    """The options, and what Beam's parser says against them."""
    logging.getLogger("apache_beam.options.pipeline_options").setLevel(logging.ERROR)
    said = io.StringIO()
    options = PipelineOptions(list(arguments))
    try:
        # Beam's parser would print all its options, and exit.
        with redirect_stderr(said):
            options.get_all_options(drop_default=False)
    except SystemExit:
        return options, (said.getvalue().strip().splitlines() or ["wrong options"])[-1].rpartition("error: ")[2]
    return options, None
