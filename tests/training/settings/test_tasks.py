"""The table of families: each row can be opened, its section is one of the recipe's, and no task has two rows."""

from __future__ import annotations

import inspect
from typing import get_type_hints

import pytest

from pipelines.contract.recipe import Section
from training.settings.finetuning import FinetuningConfig
from training.settings.glue import GLUE_TASK_NAMES
from training.settings.optimization import FittingConfig
from training.settings.tables import TableConfig
from training.settings.tasks import FAMILIES, Family, family_of, load, settings_problem, task_names

TABLE = TableConfig(name="mail", train_file="train.csv", dev_share=0.1)
CONFIG = FinetuningConfig(tables=(TABLE,))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.names(CONFIG)[-1])
def test_a_row_is_complete(family: Family) -> None:
    opener = load(family.opener)
    assert list(inspect.signature(opener).parameters) == ["inputs"]
    assert {"build_model", "loss_sum", "evaluate", "finish"} <= set(dir(get_type_hints(opener)["return"]))
    for task in family.names(CONFIG):
        assert family_of(CONFIG, task) is family
        own = family.own_settings(CONFIG, task)
        assert (own is None) == (family.section == "")
        assert own is None or own is TABLE or own is getattr(CONFIG, family.section)
        assert isinstance(CONFIG.fitting(task), FittingConfig)
        # Made here, named by a table itself, or checked before a long training; never neither.
        is_complete = bool(family.preparer) or own is TABLE
        assert is_complete == (settings_problem(CONFIG, [task]) is None)
    if family.preparer:
        assert callable(load(family.preparer))


def test_names_and_places_of_settings() -> None:
    names = task_names(CONFIG)
    assert names == (*GLUE_TASK_NAMES, "word-order", "squad", "tagging", "mail")
    assert GLUE_TASK_NAMES == ("cola", "sst-2", "mrpc", "sts-b", "qqp", "mnli", "qnli", "rte", "wnli")
    assert {name: CONFIG.fitting_key(name) for name in ("rte", "word-order", "squad", "tagging")} == {
        "rte": "finetuning",
        "word-order": "finetuning",
        "squad": "finetuning.squad",
        "tagging": "finetuning.tagging",
    }
    assert isinstance(CONFIG.family("word-order").own_settings(CONFIG, "word-order"), Section)
    pairs = [name for name in names if CONFIG.family(name).takes_pairs(CONFIG, name)]
    assert pairs == ["mrpc", "sts-b", "qqp", "mnli", "qnli", "rte", "wnli"]


def test_rows_of_dev_share_are_evaluation_data() -> None:
    family = CONFIG.family("mail")
    assert family.evaluation_files(CONFIG, "mail") == ["train.csv"]
    table = TABLE.model_copy(update={"dev_share": None, "dev_file": "dev.csv", "test_file": "test.csv"})
    config = FinetuningConfig(tables=(table,))
    assert family.evaluation_files(config, "mail") == ["dev.csv", "test.csv"]


def test_what_a_section_lacks_is_one_line_a_family() -> None:
    problem = settings_problem(CONFIG, ["word-order", "rte", "cola"])
    assert str(problem).startswith("tasks names rte, cola but glue_dir is not set")
    assert str(settings_problem(CONFIG, ["squad"])).startswith("tasks names squad but squad.train_file or")
    with pytest.raises(
        ValueError, match=r"tasks names tagging but tagging\.train_file or tagging\.dev_file is not set"
    ):
        FinetuningConfig(tasks=("tagging",))
