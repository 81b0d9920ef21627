"""Files of studies: which runs they describe, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import REPOSITORY

from flows.comparison import execution
from flows.comparison.execution import require_runs, run_directory, threads_of
from flows.comparison.study_file import read_study
from flows.parameters.whole_recipe import WholeRecipe
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import read_recipe
from pipelines.contract.recipe_text import RecipeError
from training.settings.finetuning import FinetuningConfig

STUDIES = REPOSITORY / "flows" / "studies"
STUDY = """
[study]
name = "trial"
base = "recipe.toml"
workspace = "{workspace}"
seeds = [1, 2]
overrides = ["pretraining.log_every_steps=5"]
[[study.variants]]
name = "base"
[[study.variants]]
name = "unmasked"
overrides = ["pretraining.masking=dynamic", "pretraining.mask_shares={{mask = 0.0, random = 1.0}}"]
published = {{ mlm_accuracy = 0.5 }}
"""


def written(tmp_path: Path, text: str = STUDY) -> str:
    path = tmp_path / "study.toml"
    path.write_text(text.format(workspace=tmp_path / "ws"))
    return str(path)


def test_every_variant_has_every_seed_and_the_first_seed_is_first(tmp_path: Path) -> None:
    study = read_study(written(tmp_path), ("pretraining.ranks=1",))
    assert study.base == str(tmp_path / "recipe.toml")
    runs = study.runs()
    assert [(run.variant, run.seed) for run in runs] == [("base", 1), ("unmasked", 1), ("base", 2), ("unmasked", 2)]
    assert runs[1].overrides == (
        "pretraining.log_every_steps=5",
        "pretraining.ranks=1",
        "pretraining.masking=dynamic",
        "pretraining.mask_shares={mask = 0.0, random = 1.0}",
        "pretraining.seed=1",
        "finetuning.seed=1",
        "finetuning.squad.seed=1",
        "finetuning.tagging.seed=1",
    )
    assert study.variants[1].published == {"mlm_accuracy": 0.5}


@pytest.mark.parametrize("task", ["cola", "squad", "tagging"])
def test_a_seed_reaches_the_trials_of_each_family(tmp_path: Path, task: str) -> None:
    study = read_study(written(tmp_path))
    Path(study.base).write_text("[finetuning]\n")
    for run in study.runs():
        settings = read_recipe(study.base, run.overrides).section("finetuning", FinetuningConfig)
        assert settings.fitting(task).seed == run.seed


def test_a_grid_multiplies_the_variants(tmp_path: Path) -> None:
    grid = '[study.grid]\n"pretraining.learning_rate" = [1e-3, 2e-3]\n"model.size" = ["tiny", "mini"]\n'
    study = read_study(written(tmp_path, STUDY + grid))
    names = [variant.name for variant in study.variants]
    assert len(names) == len(set(names)) == 8
    assert names[1] == 'base learning_rate=0.001 size="mini"'
    assert study.variants[1].overrides == ("pretraining.learning_rate=0.001", 'model.size="mini"')
    directories = {run_directory(study, run) for run in study.runs()}
    assert len(directories) == 16
    assert all(" " not in directory and '"' not in directory for directory in directories)


def test_a_grid_may_have_lists_of_tables(tmp_path: Path) -> None:
    phases = [f"[{{{{ max_seq_length = 32, steps = {steps} }}}}]" for steps in (5, 9)]
    study = read_study(written(tmp_path, STUDY + f'[study.grid]\n"pretraining.phases" = [{", ".join(phases)}]\n'))
    assert study.variants[1].overrides == ("pretraining.phases=[{max_seq_length = 32, steps = 9}]",)
    assert [variant.name for variant in study.variants[:2]] == ["base steps=5", "base steps=9"]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ("[[1, 2], [3]]", ["axis=[1, 2]", "axis=[3]"]),
        ("[{{ a = 1 }}, {{ b = 1 }}]", ["axis={a = 1}", "axis={b = 1}"]),
        ("[{{ a = 1, b = [2] }}, {{ a = 3, b = [4] }}]", ["a=1 b=[2]", "a=3 b=[4]"]),
        ("[[{{ a = 1 }}, {{ a = 2 }}], [{{ a = 1 }}, {{ a = 3 }}]]", ["a=2", "a=3"]),
        ("[{{ a = 1 }}]", ["axis={a = 1}"]),
        ("[{{ a = 1, b = 2 }}, {{ b = 1, a = 2 }}]", ["a=1 b=2", "a=2 b=1"]),
        ("[{{ a = 1, b = 1 }}, {{ a = true, b = 1 }}]", ["a=1", "a=true"]),
        ("[[{{ a = 1 }}, 5], [{{ a = 1 }}, 6]]", ["1=5", "1=6"]),
        (
            "[{{ a = {{ s = 1 }}, b = {{ s = 2 }} }}, {{ b = {{ s = 1 }}, a = {{ s = 2 }} }}]",
            ["s=1 s=2", "s=2 s=1"],
        ),
    ],
)
def test_a_point_of_a_grid_is_named_by_what_differs(tmp_path: Path, values: str, names: list[str]) -> None:
    study = read_study(written(tmp_path, STUDY + f'[study.grid]\n"section.axis" = {values}\n'))
    assert [variant.name for variant in study.variants[: len(names)]] == [f"base {name}" for name in names]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[study]", "[studies]", r"unknown section \[studies\]"),
        ('base = "recipe.toml"', "", r"study\.base: is required and missing"),
        ("seeds = [1, 2]", "seeds = [1, 1]", "give each seed once"),
        ("seeds = [1, 2]", "seeds = []", "seeds"),
        ('name = "unmasked"', 'name = "base"', "each with a name of its own"),
        ('name = "unmasked"', 'name = "un/masked"', r"study\.variants"),
        ("seeds = [1, 2]", "sedes = [1, 2]", "unknown key.*seeds"),
        ("[[study.variants]]", '[study.grid]\n"pretraining.seed" = []\n[[study.variants]]', "has no value"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        read_study(written(tmp_path, STUDY.replace(old, new, 1)))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "study.toml"))


def test_every_recipe_is_checked_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('[[documents.sources]]\ninputs = ["*.txt"]\n')
    wrong = STUDY.replace("pretraining.masking=dynamic", "pretraining.maskign=dynamic")
    with pytest.raises(InputError, match=r"pretraining\.maskign"):
        require_runs(read_study(written(tmp_path, wrong)))
    with pytest.raises(InputError, match="is not local; runs share stages by links"):
        require_runs(read_study(written(tmp_path, STUDY.replace("{workspace}", "s3://bucket/study"))))
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize(
    ("parallel_runs", "ranks", "threads"), [(1, 1, {}), (2, 1, "4"), (2, 2, "2"), (2, 0, "2"), (9, 1, "1")]
)
def test_parallel_runs_and_their_ranks_share_the_cores(
    tmp_path: Path, parallel_runs: int, ranks: int, threads: str | dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "available_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "recipe.toml").write_text('[[documents.sources]]\ninputs = ["*.txt"]\n')
    text = STUDY.replace("seeds = [1, 2]", f"seeds = [1, 2]\nparallel_runs = {parallel_runs}")
    study = read_study(written(tmp_path, text), (f"pretraining.ranks={ranks}",))
    wanted = {"OMP_NUM_THREADS": threads} if threads else {}
    assert threads_of(study, study.runs()[0]) == wanted
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of(study, study.runs()[0]) == {}


@pytest.mark.parametrize("name", sorted(path.name for path in STUDIES.glob("*.toml")))
def test_a_shipped_study_describes_recipes_that_load(name: str) -> None:
    files = ("finetuning.glue_dir=glue", "finetuning.tagging.train_file=train", "finetuning.tagging.dev_file=dev")
    study = read_study(str(STUDIES / name), files)
    assert study.config.name == name.removesuffix(".toml")
    assert study.config.workspace == f"workspaces/studies/{study.config.name}"
    for run in study.runs():
        WholeRecipe.check(read_recipe(study.base, run.overrides))
    measured = {"mlm_accuracy", *WholeRecipe.check(read_recipe(study.base, study.runs()[0].overrides)).finetuning.tasks}
    assert all(variant.published.keys() <= measured for variant in study.variants)
