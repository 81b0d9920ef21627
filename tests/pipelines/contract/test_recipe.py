"""Recipes: overrides, and one clear line for each kind of mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from pipelines.contract import storage
from pipelines.contract.errors import InputError, exit_code_of
from pipelines.contract.recipe import ADDED, RunConfig, Section, read_recipe
from pipelines.settings.documents import DocumentsConfig
from pipelines.settings.examples import ExamplesConfig
from pipelines.settings.vocabulary import VocabularyConfig

TEXT = """
[run]
name = "trial"
[vocabulary]
size = 500
[examples]
lengths = [{max_seq_length = 64, max_predictions_per_seq = 10}]
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "trial.toml"
    file.write_text(TEXT)
    return str(file)


def test_sections_and_overrides(path: str) -> None:
    recipe = read_recipe(path, ["vocabulary.size=800", "run.workspace=there", "examples.lengths.0.max_seq_length=32"])
    assert recipe.section("vocabulary", VocabularyConfig).size == 800
    assert recipe.section("run", RunConfig).workspace == "there"
    assert recipe.section("examples", ExamplesConfig).lengths[0].max_seq_length == 32


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vocabulary.siez=3", r"trial\.toml: vocabulary\.siez = 3: unknown key; did you mean 'size'\?"),
        ("vocabulary.size=3", r"trial\.toml: vocabulary\.size = 3: must be from 100 to 16_777_216: letters need"),
        ("vocabulary.size=many", r'trial\.toml: vocabulary\.size = "many": must be a whole number without quotes, '),
        ("documents.sources=3", r"trial\.toml: documents\.sources = 3: must be a list, such as \[3\]"),
        ("vocabulry.size=3", r"--set vocabulry\.size=3: unknown section 'vocabulry'; did you mean 'vocabulary'\?"),
        ("vocabulary=3", r"--set vocabulary=3: write it as section\.key=value"),
        ("vocabulary.size.deep=3", r"--set vocabulary\.size\.deep=3: .*plain value"),
        ("examples.lengths.5.max_seq_length=3", r"use a number from 0 to 0, not '5'"),
        ("examples.lengths.0.max_length=3", r"examples\.lengths\.0\.max_length = 3: unknown key; did you mean 'max_se"),
        ("examples.lengths.0.max_predictions_per_seq=63", r"examples\.lengths\.0.*exceeds the 61 tokens"),
        ("examples.lengths=[]", r"\[examples\] lengths = \[\]: give at least one"),
        ("documents.sources=[{inputs=[]}]", r"documents\.sources\.0\.inputs = \[\]: must not be empty$"),
    ],
)
def test_mistakes(path: str, override: str, message: str) -> None:
    models = {"vocabulary": VocabularyConfig, "examples": ExamplesConfig, "documents": DocumentsConfig}

    def check_all() -> None:
        recipe = read_recipe(path, [override])
        for name, model in models.items():
            recipe.section(name, model)

    with pytest.raises(InputError, match=message) as caught:
        check_all()
    assert "\n" not in str(caught.value)


def test_missing_required_key(path: str) -> None:
    with pytest.raises(InputError, match=r"documents\.sources: is required and missing; add it under \[documents\]"):
        read_recipe(path).section("documents", DocumentsConfig)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[vocabulry]\n", "unknown section"), ("size = 3\n", "unknown section"), ("[run\n", "not valid TOML")],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=rf"bad\.toml: {message}"):
        read_recipe(str(file))
    with pytest.raises(InputError, match=r"absent\.toml: no such recipe file"):
        read_recipe(str(tmp_path / "absent.toml"))


def test_operational_settings_are_no_part_of_the_identity() -> None:
    assert "workers" not in RunConfig(workers=3).identity()
    assert ExamplesConfig().identity()["lengths"][0] == {"max_seq_length": 128, "max_predictions_per_seq": 20}


def test_a_setting_that_was_added_later_is_part_of_the_identity_only_if_it_is_set() -> None:
    class Later(Section):
        old: int = 1
        new: int | None = Field(default=None, json_schema_extra=ADDED)

    assert Later().identity() == {"old": 1}
    assert Later(new=2).identity() == {"old": 1, "new": 2}


def test_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise InputError("recipe.toml: wrong")

    assert exit_code_of(fail) == 2
    assert capsys.readouterr().err == "error: recipe.toml: wrong\n"
    assert exit_code_of(lambda: None) == 0


def test_a_recipe_in_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "latin.toml"
    file.write_bytes('[run]\nname = "caf\u00e9"\n'.encode("latin-1"))
    with pytest.raises(InputError, match=rf"^{file}: not UTF-8 at byte 17; save it as UTF-8$"):
        read_recipe(str(file))


def test_a_place_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=r"file/below: cannot create this directory \(Not a directory\); choose another path"
    ):
        storage.write_bytes(str(tmp_path / "file" / "below" / "x"), b"")
