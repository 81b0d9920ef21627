"""The file of a study: a base recipe, its variants as overrides, and the seeds that all of them are trained with."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from pipelines.contract.bounds import NAME_PATTERN, Bounded, Seed, Text, UserPath
from pipelines.contract.recipe import Section, lists_as_tuples
from pipelines.contract.recipe_problems import first_problem
from pipelines.contract.recipe_text import RecipeError, read_file, require_limits, shortened
from training.settings.finetuning import LOOP_SECTIONS

STUDY = "study"
SEED_KEYS = ("pretraining.seed", "finetuning.seed", *(f"finetuning.{section}.seed" for section in LOOP_SECTIONS))
"""Recipe keys of the seeds of all trainings."""
_MOST_RUNS = 500

Overrides = tuple[Text, ...]
Name = Annotated[str, Field(pattern=NAME_PATTERN.replace("[A-Za-z]", "[A-Za-z0-9]", 1), max_length=64)]


class VariantConfig(Section):
    """`[[study.variants]]`: one way to change the base recipe."""

    name: Name
    overrides: Overrides = ()
    """As `--set` takes them; none for the base recipe itself."""
    published: dict[str, float] = Field(default_factory=dict)
    """Values of a paper by metric or task, which are shown next to those of the study."""


class StudyConfig(Section):
    """`[study]`: what is compared."""

    name: Name
    base: UserPath
    """The recipe, relative to the file of the study."""
    workspace: UserPath
    """Where all runs and the results are kept."""
    question: Text = ""
    """What the study asks, for its page."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (12_345,)
    """Each variant is trained with each of them, in place of the seeds of pre-training and of all fine-tuning."""
    overrides: Overrides = ()
    """Changes of the base recipe for all variants."""
    parallel_runs: Annotated[int, Bounded(1, 256, "each of them trains a model")] = 1
    """Runs at the same time; each trains with the ranks of its recipe."""
    variants: tuple[VariantConfig, ...] = (VariantConfig(name="base"),)
    """The first one is what the others are compared with."""
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Settings with the values that each variant is multiplied by: `"pretraining.learning_rate" = [1e-3, 2e-3]`."""

    @field_validator("grid", mode="before")
    @classmethod
    def _lists_of_values(cls, grid: Any) -> Any:
        """The grid with its lists as tuples, as sections hold them."""
        return lists_as_tuples(grid)

    @model_validator(mode="after")
    def _names_differ(self) -> StudyConfig:
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"variants = {names}: give at least one, each with a name of its own")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)}: give each seed once")
        if empty := [key for key, values in self.grid.items() if not values]:
            raise ValueError(f"grid: {empty[0]} has no value; give a list of values")
        count = len(self.seeds) * len(names)
        for values in self.grid.values():
            count *= len(values)
        if count > _MOST_RUNS:
            raise ValueError(f"these are {count} runs, more than {_MOST_RUNS}; give fewer values or seeds")
        return self


@dataclass(frozen=True)
class Variant:
    """One column of the comparison: the base recipe with these overrides."""

    name: str
    overrides: tuple[str, ...]
    published: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """A variant with one seed."""

    variant: str
    seed: int
    overrides: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """A study that has been read; `base` is the path of its recipe."""

    config: StudyConfig
    path: str
    base: str
    more: tuple[str, ...] = ()
    """Overrides of the command line, for all runs."""

    @property
    def variants(self) -> list[Variant]:
        """The variants of the file, multiplied by the grid."""
        return [
            Variant(
                " ".join([variant.name, *(name for _, _, name in point)]),
                (*variant.overrides, *(f"{key}={_toml(value)}" for key, value, _ in point)),
                variant.published,
            )
            for variant in self.config.variants
            for point in self._points()
        ]

    def runs(self) -> list[Run]:
        """All runs, those of one seed together, so that the first seed's comparison is complete early."""
        return [
            Run(
                variant.name,
                seed,
                (
                    *self.config.overrides,
                    *self.more,
                    *variant.overrides,
                    *(f"{key}={seed}" for key in SEED_KEYS),
                ),
            )
            for seed in self.config.seeds
            for variant in self.variants
        ]

    def _points(self) -> Iterator[tuple[tuple[str, Any, str], ...]]:
        """Key, value and name of a value on each axis of the grid."""
        axes = [
            [(key, value, name) for value, name in zip(values, _names(key, values), strict=True)]
            for key, values in self.config.grid.items()
        ]
        return itertools.product(*axes)


def read_study(path: str, more: tuple[str, ...] = ()) -> Study:
    """Read the file of a study.

    Args:
        path: the TOML file.
        more: overrides for all runs.

    Raises:
        RecipeError: the file cannot be read, or a key or value is wrong; the line names it.
    """
    tables = read_file(path)
    require_limits(path, tables)
    if unknown := [name for name in tables if name != STUDY]:
        raise RecipeError(f"{path}: unknown section [{shortened(unknown[0])}]; a study has [{STUDY}] only")
    if not isinstance(tables.get(STUDY), dict):
        raise RecipeError(f"{path}: has no section [{STUDY}]; a study needs name, base, workspace and variants")
    try:
        config = StudyConfig.model_validate(tables[STUDY])
    except ValidationError as error:
        raise RecipeError(f"{path}: {first_problem(STUDY, StudyConfig, error)}") from error
    return Study(config, path, os.path.join(os.path.dirname(path), config.base), more)


def _names(key: str, values: Sequence[Any]) -> list[str]:
    """A name for each value of an axis: of tables and lists of one shape only the parts that differ."""
    parts = [{name: _toml(part) for name, part in _leaves(value)} for value in values]
    differing = [name for name in parts[0] if len({each.get(name) for each in parts}) > 1]
    own = key.rpartition(".")[2]
    names = [
        " ".join(f"{name.rpartition('.')[2] or own}={each.get(name)}" for name in differing) or f"{own}={_toml(value)}"
        for value, each in zip(values, parts, strict=True)
    ]
    has_one_shape = all(each.keys() == parts[0].keys() for each in parts)
    if has_one_shape and len(set(names)) == len(names):
        return names
    return [f"{own}={_toml(value)}" for value in values]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The single values of tables and lists, by the names on the way to them."""
    if isinstance(value, Mapping):
        parts: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)) and any(isinstance(part, Mapping) for part in value):
        parts = enumerate(value)
    else:
        yield name, value
        return
    for key, part in parts:
        yield from _leaves(part, f"{name}.{key}")


def _toml(value: Any) -> str:
    """A value as an override has it: JSON's numbers, texts and booleans are TOML's, too."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
