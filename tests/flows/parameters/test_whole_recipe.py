"""Recipes: shipped ones load; a user error gives one line, exit code 2 and no traceback on the real command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support import REPOSITORY

from flows.parameters.requests import FinetuneRequest, PreprocessRequest, RunRequest, TrialRequest
from flows.parameters.whole_recipe import SECTION_MODELS, WholeRecipe
from flows.running.plan import finetuning_stages
from pipelines.contract.recipe import SECTION_NAMES, read_recipe
from pipelines.contract.recipe_text import RecipeError

RECIPES = str(REPOSITORY / "flows" / "recipes")
WITH_GLUE = ("novels.toml", "babylm-10m.toml", "babylm-10m-sentence-pairs.toml", "babylm-100m.toml")
NEEDED_OVERRIDES = dict.fromkeys(WITH_GLUE, ("finetuning.glue_dir=glue",))


@pytest.mark.parametrize("name", sorted(os.listdir(RECIPES)))
def test_a_shipped_recipe_loads(name: str) -> None:
    whole = RunRequest(recipe=os.path.join(RECIPES, name), overrides=NEEDED_OVERRIDES.get(name, ())).read()
    assert whole.run.name == name.removesuffix(".toml")
    assert whole.run.workspace == f"workspaces/{whole.run.name}"


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "heads", "intermediate"),
    [("bert-base.toml", 12, 768, 12, 3072), ("bert-large.toml", 24, 1024, 16, 4096)],
)
def test_sizes_are_those_of_the_paper(name: str, layers: int, hidden: int, heads: int, intermediate: int) -> None:
    whole = RunRequest(recipe=os.path.join(RECIPES, name)).read()
    model, pretraining = whole.model, whole.pretraining
    assert (model.num_hidden_layers, model.hidden_size) == (layers, hidden)
    assert (model.num_attention_heads, model.intermediate_size) == (heads, intermediate)
    assert whole.vocabulary.size == 30_522
    assert [(phase.max_seq_length, phase.steps) for phase in pretraining.phases] == [(128, 900_000), (512, 100_000)]
    assert {phase.global_batch_size for phase in pretraining.phases} == {256}
    assert (pretraining.learning_rate, pretraining.num_warmup_steps) == (1e-4, 10_000)
    lengths = [(length.max_seq_length, length.max_predictions_per_seq) for length in whole.examples.lengths]
    assert lengths == [(128, 20), (512, 80)]


def test_every_section_of_a_file_has_a_model() -> None:
    assert tuple(SECTION_MODELS) == SECTION_NAMES


CROSS_SECTION = [
    (
        ("phases = [{ max_seq_length = 32", "phases = [{ max_seq_length = 24"),
        "pretraining.phases.0.max_seq_length = 24: examples.lengths makes only 32; "
        "add this length there or use one of them",
    ),
    (
        ("max_position_embeddings = 32", "max_position_embeddings = 16"),
        "pretraining.phases.0.max_seq_length = 32 exceeds model.max_position_embeddings = 16; "
        "raise the latter or shorten the phase",
    ),
    (
        ('glue_dir = "glue"\nmax_seq_length = 32', 'glue_dir = "glue"\nmax_seq_length = 64'),
        "finetuning.max_seq_length = 64 exceeds model.max_position_embeddings = 32; "
        "raise the latter or shorten the former",
    ),
]


@pytest.mark.parametrize(("replacement", "message"), CROSS_SECTION)
def test_sections_have_to_fit_together(
    write_recipe: Callable[..., str], replacement: tuple[str, str], message: str
) -> None:
    path = write_recipe(replacement)
    with pytest.raises(RecipeError if "phases.0.max_seq_length = 24" in message else ValueError) as caught:
        WholeRecipe.check(read_recipe(path))
    assert str(caught.value) == f"{path}: {message}"


def test_only_fine_tuning_takes_a_recipe_without_a_corpus(tmp_path: Path) -> None:
    recipe = tmp_path / "tune.toml"
    recipe.write_text('[run]\nname = "tune"\n[finetuning]\nencoder = "bert"\nglue_dir = "glue"\ntasks = ["rte"]\n')
    whole = FinetuneRequest(recipe=str(recipe)).read()
    (stage,) = finetuning_stages(whole)
    assert [output.name for output in stage.outputs] == ["rte/pretrained"]
    assert TrialRequest(recipe=str(recipe), trial="rte/pretrained").read().sections() == whole.sections()
    with pytest.raises(RecipeError, match=r"documents\.sources: is required and missing"):
        RunRequest(recipe=str(recipe)).read()
    with pytest.raises(RecipeError, match=r"documents\.sources: is required and missing"):
        PreprocessRequest(recipe=str(recipe)).read()


def test_a_remote_workspace_needs_a_tracking_server(write_recipe: Callable[..., str]) -> None:
    path = write_recipe()
    remote = ("run.workspace=s3://bucket/ws",)
    with pytest.raises(RecipeError, match=r"run\.workspace = s3://bucket/ws is not local.*set tracking\.mlflow_trac"):
        RunRequest(recipe=path, overrides=remote).read()
    RunRequest(recipe=path, overrides=(*remote, "tracking.mlflow_tracking_uri=http://127.0.0.1:5000")).read()


def run_end_to_end(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.end_to_end", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_mistakes_on_the_command_line_give_one_line_and_exit_code_2(write_recipe: Callable[..., str]) -> None:
    path = write_recipe()
    cases = {
        ("absent.toml",): "error: absent.toml: no such recipe file; the ready-made ones are in flows/recipes/",
        (path, "--set", "tracking.expermient=x"): f'error: {path}: tracking.expermient = "x": unknown key; '
        "did you mean 'experiment'?",
        (path, "--set", "tracking.alias=Champion"): f'error: {path}: tracking.alias = "Champion": String should match '
        "pattern '^[a-z][a-z0-9_-]*$'",
    }
    for arguments, expected in cases.items():
        ended = run_end_to_end(*arguments)
        assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", expected + "\n")
        assert not os.path.exists(os.path.join(os.path.dirname(path), "ws"))


@pytest.mark.slow
def test_an_unreachable_prefect_server_is_named(
    write_recipe: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    ended = run_end_to_end(write_recipe())
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: PREFECT_API_URL = http://127.0.0.1:9/api: no Prefect server answers;")
    assert "Traceback" not in ended.stderr


def test_mask_shares_of_examples_that_are_masked_beforehand_are_refused_before_the_first_stage() -> None:
    recipe, shares = os.path.join(RECIPES, "bert-base.toml"), "pretraining.mask_shares={mask = 1.0, random = 0.0}"
    with pytest.raises(
        RecipeError, match=r"mask_shares = 1 \[MASK\], 0 random, but the examples are masked beforehand"
    ):
        RunRequest(recipe=recipe, overrides=(shares,)).read()
    whole = RunRequest(recipe=recipe, overrides=(shares, "pretraining.masking=dynamic")).read()
    assert whole.pretraining.mask_shares.mask == 1.0
