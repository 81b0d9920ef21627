"""The key of a fine-tuning trial has the contents of its files, and not where they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.training.trial_keys import trial_key

from pipelines.contract.manifest import StageKey
from pipelines.contract.recipe import read_recipe
from training.stages.finetuning import finetuning_key
from training.stages.sections import FinetuningSections

FILES = {
    "mnli": {
        name: f"{name}\n"
        for name in (
            "glue/MNLI/train.tsv",
            "glue/MNLI/dev_matched.tsv",
            "glue/MNLI/dev_mismatched.tsv",
            "glue/MNLI/test_matched.tsv",
        )
    },
    "squad": {"train.json": "1", "dev.json": "2"},
    "tagging": {"train.txt": "1", "dev.txt": "2", "test.txt": "3"},
}
SETTINGS = {
    "mnli": 'glue_dir = "{folder}/glue"',
    "squad": 'squad = {{ train_file = "{folder}/train.json", dev_file = "{folder}/dev.json" }}',
    "tagging": (
        'tagging = {{ train_file = "{folder}/train.txt", dev_file = "{folder}/dev.txt", '
        'test_file = "{folder}/test.txt" }}'
    ),
}


def key_of(task: str, folder: Path, settings: str = "") -> StageKey:
    for name, text in FILES[task].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return trial_key(folder, task, f"{SETTINGS[task].format(folder=folder)}\n{settings}")


@pytest.mark.parametrize("task", FILES)
def test_data_may_move(task: str, tmp_path: Path) -> None:
    here, there = key_of(task, tmp_path / "here"), key_of(task, tmp_path / "there")
    assert (here.config, here.inputs) == (there.config, there.inputs)
    assert str(tmp_path) not in str([here.config, here.inputs])


def test_a_slash_after_the_folder_changes_nothing(tmp_path: Path) -> None:
    first = key_of("mnli", tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('/glue"', '/glue/"'))
    again = finetuning_key(FinetuningSections.of(read_recipe(str(recipe))), "mnli", "pretrained")
    assert again.inputs == first.inputs


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, files in FILES.items() for name in files])
def test_another_content_is_another_key(task: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = key_of(task, tmp_path)
    monkeypatch.setitem(FILES[task], name, "other")
    assert key_of(task, tmp_path).inputs["data"] != first.inputs["data"]


def test_exchanged_files_are_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = key_of("squad", tmp_path)
    monkeypatch.setitem(FILES, "squad", {"train.json": "2", "dev.json": "1"})
    assert key_of("squad", tmp_path).inputs["data"] != first.inputs["data"]


def test_the_head_of_a_classifier_is_part_of_the_key_unless_it_is_the_pooler(tmp_path: Path) -> None:
    first = key_of("mnli", tmp_path)
    assert key_of("mnli", tmp_path, 'classifier_head = "pooler"\n').config == first.config
    assert key_of("mnli", tmp_path, 'classifier_head = "segment_means"\n').config != first.config
