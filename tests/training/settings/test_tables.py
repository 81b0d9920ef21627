"""Settings of tables: names, contradictions, the key of a trial, and what does not change for other recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tests.support.training.trial_keys import trial_key

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey
from pipelines.contract.recipe import read_recipe
from training.settings.finetuning import FinetuningConfig
from training.settings.tables import METRICS, SUFFIXES, TableConfig
from training.stages.finetuning import require_task_data
from training.tables.reading import READERS
from training.tables.scores import scores

TABLE: dict[str, Any] = {"name": "mail", "train_file": "train.csv", "dev_share": 0.1}


def test_tables_are_tasks() -> None:
    tables = ({**TABLE}, {**TABLE, "name": "posts", "text": ("title", "body")})
    config = FinetuningConfig.model_validate({"tables": tables})
    assert config.tasks == ("mail", "posts")
    assert [config.family(task).takes_pairs(config, task) for task in config.tasks] == [False, True]
    assert config.fitting("mail") is config
    assert config.fitting_key("mail") == "finetuning"
    assert FinetuningConfig.model_validate({"tables": tables, "tasks": ("posts",)}).tasks == ("posts",)
    assert FinetuningConfig.model_validate({"tables": tables, "tasks": ()}).tasks == ()
    assert FinetuningConfig().identity() == FinetuningConfig(tables=()).identity()
    assert "tables" not in FinetuningConfig().identity()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "rte"}, "tables: the name 'rte' is that of another task"),
        ({"name": "Squad"}, "tables: the name 'Squad' is that of another task"),
        ({"name": "data"}, "tables: the name 'data' is that of another task"),
        ({"name": "../up"}, "it names a directory and a model: use up to 64 letters"),
        ({"name": None}, r"tables\.0\.name\n"),
        ({"delimiter": '"'}, "it is between the cells of a row: use another character"),
        ({"delimiter": "\n"}, "it is between the cells of a row"),
        ({"name": "a.b"}, "it names a directory and a model"),
        ({"dev_file": "dev.csv"}, "table 'mail': both of dev_file and dev_share; give one of them"),
        ({"dev_share": None}, "table 'mail': neither of dev_file and dev_share; give one of them"),
        ({"text": ("label",)}, "table 'mail': text and label name a column twice"),
        ({"metric": "micro_f1"}, r"metric = 'micro_f1' is none of kind = 'single'; valid names: accuracy, macro_f1"),
        ({"metric": "f1"}, "metric = 'f1' is the F1 of one label; name it as positive_label"),
        ({"positive_label": "a", "kind": "multi"}, "positive_label is for kind = 'single'"),
        (
            {"balance_labels": True, "class_weights": ({"label": "a", "weight": 2.0},)},
            "both balance_labels and class_weights",
        ),
        ({"balance_labels": True, "kind": "regression"}, "weights are of labels, and kind = 'regression' has none"),
    ],
)
def test_contradictions_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FinetuningConfig.model_validate({"tables": ({**TABLE, **settings},)})


@pytest.mark.parametrize("table", [1, "mail", {}, {"name": 1}])
def test_an_entry_that_is_no_table_is_refused_in_its_place(table: Any) -> None:
    with pytest.raises(ValidationError, match=r"tables\.0") as caught:
        FinetuningConfig.model_validate({"tables": (table,)})
    assert "tasks" not in str(caught.value)


def test_a_tab_may_be_the_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    table = '[[finetuning.tables]]\nname = "mail"\ntrain_file = "train.txt"\ndev_share = 0.1\nformat = "csv"\n'
    path.write_text(table + 'delimiter = "\\t"\n')
    config = read_recipe(str(path)).section("finetuning", FinetuningConfig)
    assert config.tables[0].delimiter == "\t"
    changed = read_recipe(str(path), ['finetuning.tables.0.delimiter="\\t"'])
    assert changed.section("finetuning", FinetuningConfig) == config
    with pytest.raises(InputError, match="holds the control character"):
        read_recipe(str(path), ['finetuning.tables.0.label="a\\tb"'])


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValidationError, match="tables: the name 'MAIL' is that of another task"):
        FinetuningConfig.model_validate({"tables": (TABLE, {**TABLE, "name": "MAIL"})})


def test_lists_of_names_agree() -> None:
    assert set(SUFFIXES.values()) | {"arrow"} == set(READERS)
    for kind, names in METRICS.items():
        table = TableConfig(**TABLE, kind=kind, positive_label="a" if "f1" in names else None)
        targets = {"multi": [[1.0, 0.0], [0.0, 1.0]]}.get(kind, [0.0, 1.0])
        found = scores(table, ("a", "b"), np.array(targets), np.array(targets))
        assert set(found) == set(names)
        assert found == pytest.approx(dict.fromkeys(names, 1.0))
        assert next(iter(found)) == names[0] == table.judged_by


def key_of(folder: Path, more: str = "", name: str = "mail.csv") -> StageKey:
    table = f'[[finetuning.tables]]\nname = "mail"\ntrain_file = "{folder}/{name}"\ndev_share = 0.5\n{more}'
    return trial_key(folder, "mail", table)


def test_a_key_has_contents_and_no_paths(tmp_path: Path) -> None:
    rows = "text,label\n" + "".join(f"x {number},{'ab'[number % 2]}\n" for number in range(40))
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mail.csv").write_text(rows)
    (tmp_path / "there" / "mail.csv").rename(tmp_path / "there" / "post.csv")
    first, moved = key_of(tmp_path / "here"), key_of(tmp_path / "there", name="post.csv")
    assert (first.config, first.inputs) == (moved.config, moved.inputs)
    assert str(tmp_path) not in str(first.config)
    assert first.config["tables"]["class_weights"] == []
    weighted = key_of(tmp_path / "here", 'class_weights = [{ label = "a", weight = 2.0 }]')
    assert weighted.config["tables"]["class_weights"] == [{"label": "a", "weight": 2.0}]
    assert key_of(tmp_path / "here", "threshold = 0.4").config != first.config
    (tmp_path / "here" / "mail.csv").write_text(rows + "new,a\n")
    assert key_of(tmp_path / "here").inputs != first.inputs


def test_rows_are_checked_before_a_long_training(tmp_path: Path) -> None:
    (tmp_path / "mail.csv").write_text("text,label\nx,a\ny,\n")
    table = {
        **TABLE,
        "train_file": str(tmp_path / "mail.csv"),
        "dev_share": None,
        "dev_file": str(tmp_path / "mail.csv"),
    }
    config = FinetuningConfig.model_validate({"tables": (table,)})
    with pytest.raises(InputError, match=r"mail\.csv:3: no label in column 'label'"):
        require_task_data(config)
    (tmp_path / "mail.csv").write_text("text,label\nx,a\ny,b\n")
    require_task_data(config)


def test_sections_with_tables_can_be_keys() -> None:
    """Trials are members of sets, with their settings."""
    table = {**TABLE, "class_weights": ({"label": "a", "weight": 2.0},)}
    first, second = (FinetuningConfig.model_validate({"tables": (table,)}) for _ in range(2))
    assert hash(first) == hash(second)
