"""The families of fine-tuning tasks, in one table; light to import, without torch.

A family is a kind of task: the names of `finetuning.tasks` that belong to it, the files it reads, and the function that
opens it for the loop. A new family needs one row of FAMILIES and one module with the functions named in that row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from pipelines.contract import storage
from pipelines.contract.recipe import Section
from training.settings import squad, tables, tagging
from training.settings.glue import GLUE_TASK_NAMES, TASKS, WORD_ORDER, WordOrderConfig, prediction_files, task_files
from training.settings.squad import SquadConfig
from training.settings.sweep import SMALL_TASK_ROWS
from training.settings.tables import TableConfig
from training.settings.tagging import TaggingConfig


class TaskSettings(Protocol):
    """The part of the section [finetuning] that families read."""

    @property
    def glue_dir(self) -> str | None: ...
    @property
    def word_order(self) -> WordOrderConfig: ...
    @property
    def squad(self) -> SquadConfig: ...
    @property
    def tagging(self) -> TaggingConfig: ...
    @property
    def tables(self) -> tuple[TableConfig, ...]: ...


@dataclass(frozen=True)
class Family:
    """A kind of task. Functions named as "module:function" are imported only when a task runs."""

    names: Callable[[TaskSettings], Sequence[str]]
    """Tasks of this family that `finetuning.tasks` may name."""
    opener: str
    """Reads and tokenizes a task: from `training.finetuning.problem.TaskInputs` to a `Problem`."""
    problem: Callable[[TaskSettings, Sequence[str]], str | None]
    """What the section lacks for these tasks of the family, with the remedy; None if nothing."""
    data_files: Callable[[TaskSettings, str], dict[str, str]]
    """Paths of the files that a task's trial depends on, by names that do not depend on where they are; raises
    InputError if one is missing. Empty for a generated task."""
    dev_files: Callable[[TaskSettings, str, str | None], list[str]]
    """The development files that a task is scored on; the third argument is the parent of the task's folder."""
    section: str = ""
    """Name below [finetuning] of the family's own settings; empty if it has none."""
    own_settings: Callable[[TaskSettings, str], Section | None] = lambda _settings, _task: None
    """A task's settings in that section. If they are a FittingConfig, the loop takes its settings from them."""
    preparer: str = ""
    """Generates the task's files from held-out documents; empty if the files are given. Takes the folder to write to,
    the directory and manifest of the documents, the family's settings, and the version of the code."""
    is_small: Callable[[TaskSettings, str, str | None], bool] = lambda _settings, _task, _folder: False
    """Whether a sweep adds `small_task_restarts` seeds to the task. The third argument is as for `dev_files`."""
    takes_pairs: Callable[[TaskSettings, str], bool] = lambda _settings, _task: False
    """Whether the input is a pair of texts."""
    reads_sequences: bool = False
    """Whether one vector of a sequence is classified, not one of each token, so that `classifier_head` applies."""
    dev_choice: Callable[[TaskSettings, str], dict[str, Any]] = lambda _settings, _task: {}
    """Settings that, with `dev_files`, decide what a score is a score of."""
    evaluation_files: Callable[[TaskSettings, str], list[str]] = lambda _settings, _task: []
    """Files of texts that a model is scored on or predicts; empty for a generated task. They need not exist."""
    check: Callable[[TaskSettings, str], None] = lambda _settings, _task: None
    """Reads a task's files before a long training; raises InputError for the first bad row."""


def load(name: str) -> Any:
    """Import the function named as "module:function"."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def _glue_problem(settings: TaskSettings, tasks: Sequence[str]) -> str | None:
    if settings.glue_dir is not None:
        return None
    return (
        f"tasks names {', '.join(tasks)} but glue_dir is not set; add "
        "--set finetuning.glue_dir=<folder with CoLA, RTE ...>"
    )


def _glue_files(settings: TaskSettings, task: str) -> dict[str, str]:
    folder = settings.glue_dir
    assert folder is not None
    inside = storage.join(folder, "")
    return {path.removeprefix(inside): path for path in task_files(task, folder) + prediction_files(task, folder)}


def _glue_evaluation_files(settings: TaskSettings, task: str) -> list[str]:
    assert settings.glue_dir is not None
    dev_files = [storage.join(settings.glue_dir, TASKS[task].folder, file) for file in TASKS[task].dev_files]
    return dev_files + prediction_files(task, settings.glue_dir)


def _first_dev_file(_settings: TaskSettings, task: str, folder: str | None) -> list[str]:
    return [storage.join(folder, TASKS[task].folder, TASKS[task].dev_files[0])] if folder else []


def _has_few_rows(_settings: TaskSettings, task: str, folder: str | None) -> bool:
    return bool(load("training.glue.reading:num_training_rows")(task, folder) < SMALL_TASK_ROWS)


def _has_second_sentence(_settings: TaskSettings, task: str) -> bool:
    return TASKS[task].sentence_b is not None


def _files_problem(task: str, section: SquadConfig | TaggingConfig) -> str | None:
    if section.train_file and section.dev_file:
        return None
    return (
        f"tasks names {task} but {task}.train_file or {task}.dev_file is not set; add "
        f"--set finetuning.{task}.train_file=<file>, and dev_file likewise"
    )


def _given(*paths: str | None) -> list[str]:
    return [path for path in paths if path]


def _dev_file(section: SquadConfig | TaggingConfig) -> list[str]:
    return [section.dev_file] if section.dev_file else []


def _table(settings: TaskSettings, task: str) -> TableConfig:
    return next(table for table in settings.tables if table.name == task)


def _table_evaluation_files(table: TableConfig) -> list[str]:
    # With dev_share, the development rows are in the training file.
    return _given(table.dev_file or table.train_file, table.test_file)


def _check_table(settings: TaskSettings, task: str) -> None:
    load("training.tables.reading:read_splits")(_table(settings, task))


def _has_few_table_rows(settings: TaskSettings, task: str, _folder: str | None) -> bool:
    return bool(load("training.tables.reading:num_training_rows")(_table(settings, task)) < SMALL_TASK_ROWS)


FAMILIES: tuple[Family, ...] = (
    Family(
        names=lambda _: GLUE_TASK_NAMES,
        opener="training.glue.problem:open_glue",
        reads_sequences=True,
        problem=_glue_problem,
        data_files=_glue_files,
        dev_files=_first_dev_file,
        is_small=_has_few_rows,
        takes_pairs=_has_second_sentence,
        evaluation_files=_glue_evaluation_files,
    ),
    Family(
        names=lambda _: (WORD_ORDER,),
        opener="training.glue.problem:open_glue",
        reads_sequences=True,
        problem=lambda _settings, _tasks: None,
        data_files=lambda _settings, _task: {},
        dev_files=_first_dev_file,
        section="word_order",
        own_settings=lambda settings, _: settings.word_order,
        preparer="training.glue.word_order:prepare_word_order",
        is_small=_has_few_rows,
        takes_pairs=_has_second_sentence,
    ),
    Family(
        names=lambda _: ("squad",),
        opener="training.squad.problem:open_task",
        problem=lambda settings, _: _files_problem("squad", settings.squad),
        data_files=lambda settings, _: squad.data_files(settings.squad),
        dev_files=lambda settings, _task, _folder: _dev_file(settings.squad),
        evaluation_files=lambda settings, _: _dev_file(settings.squad),
        section="squad",
        own_settings=lambda settings, _: settings.squad,
    ),
    Family(
        names=lambda _: ("tagging",),
        opener="training.tagging.problem:open_task",
        problem=lambda settings, _: _files_problem("tagging", settings.tagging),
        data_files=lambda settings, _: tagging.data_files(settings.tagging),
        dev_files=lambda settings, _task, _folder: _dev_file(settings.tagging),
        evaluation_files=lambda settings, _: _given(settings.tagging.dev_file, settings.tagging.test_file),
        section="tagging",
        own_settings=lambda settings, _: settings.tagging,
    ),
    Family(
        names=lambda settings: [table.name for table in settings.tables],
        opener="training.tables.problem:open_table",
        reads_sequences=True,
        problem=lambda _settings, _tasks: None,
        data_files=lambda settings, task: tables.files_of(_table(settings, task)),
        dev_files=lambda settings, task, _folder: tables.dev_files(_table(settings, task)),
        evaluation_files=lambda settings, task: _table_evaluation_files(_table(settings, task)),
        section="tables",
        own_settings=_table,
        is_small=_has_few_table_rows,
        takes_pairs=lambda settings, task: len(_table(settings, task).text) == 2,
        dev_choice=lambda settings, task: tables.dev_choice(_table(settings, task)),
        check=_check_table,
    ),
)


def task_names(settings: TaskSettings) -> tuple[str, ...]:
    """All names that `finetuning.tasks` may have."""
    return tuple(name for family in FAMILIES for name in family.names(settings))


def family_of(settings: TaskSettings, task: str) -> Family:
    """The row that a task belongs to; its name is one of `task_names`."""
    return next(family for family in FAMILIES if task in family.names(settings))


def settings_problem(settings: TaskSettings, tasks: Sequence[str]) -> str | None:
    """The first thing that the section lacks for these tasks, with the remedy; None if nothing."""
    for family in FAMILIES:
        asked = [task for task in tasks if task in family.names(settings)]
        if asked and (problem := family.problem(settings, asked)):
            return problem
    return None
