"""Scores of versions: against chance, in words, and that a diverged run has none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.statistics import statistics_with

from flows.parameters.requests import RunRequest
from flows.parameters.tracking_config import TrackingConfig
from flows.parameters.whole_recipe import WholeRecipe
from flows.registry.criteria import Contest, Evaluation, judge
from flows.registry.evaluations import encoder_evaluation, finetuned_evaluation, score_in_words
from pipelines.contract import storage
from pipelines.contract.manifest import Manifest, StageKey, record_of, write_manifest
from pipelines.contract.recipe_text import RecipeError
from pipelines.contract.statistics import Statistics
from pipelines.statistics.training import TrialStatistics


@pytest.fixture
def whole(write_recipe: Callable[..., str], tmp_path: object) -> WholeRecipe:
    """A recipe with CoLA's development file, and a workspace with held-out examples."""
    storage.write_bytes(f"{tmp_path}/glue/CoLA/dev.tsv", b"x\t1\t\tA sentence.\n")
    whole = RunRequest(recipe=write_recipe(('glue_dir = "glue"', f'glue_dir = "{tmp_path}/glue"'))).read()
    directory = storage.join(whole.run.workspace, "examples")
    name = "length32/heldout-00000-of-00001.arrow"
    storage.write_bytes(storage.join(directory, name), b"rows")
    files = [record_of(directory, name, rows=1)]
    write_manifest(directory, StageKey("examples", 1, {}, {"vocabulary": "v"}).manifest(files, {}, "0"))
    return whole


def manifest_of(stage: str, statistics: Statistics | dict[str, Any], **config: Any) -> Manifest:
    return StageKey(stage, 1, config, {}).manifest([], statistics, "0")


def passes_floor(evaluation: Evaluation) -> bool:
    return judge(Contest(evaluation, TrackingConfig())).promoted


@pytest.mark.parametrize(
    ("statistics", "chance"),
    [
        ({"constant_baseline": 0.4, "majority_baseline": 0.0}, 0.4),
        ({"majority_baseline": 0.5}, 0.5),  # of an earlier release
        ({}, 0.0),
    ],
)
def test_chance_is_the_best_constant_answer(whole: WholeRecipe, statistics: dict[str, Any], chance: float) -> None:
    manifest = manifest_of("finetuning", statistics_with(TrialStatistics, metric="f1", score=0.45, **statistics))
    evaluation = finetuned_evaluation(whole, "cola", manifest)
    assert evaluation is not None
    assert evaluation.chance == chance
    assert passes_floor(evaluation) == (chance < 0.44)


@pytest.mark.parametrize(
    ("after", "passes"),
    [
        ({"mlm_accuracy": 0.2, "mlm_loss": 5.0}, True),
        ({"mlm_accuracy": 0.2, "mlm_loss": math.nan}, False),
        ({"mlm_accuracy": 0.2, "nsp_loss": math.inf}, False),
        ({"mlm_accuracy": 0.005, "mlm_loss": 9.0}, False),
    ],
)
def test_a_diverged_encoder_does_not_pass(whole: WholeRecipe, after: dict[str, float], passes: bool) -> None:
    manifest = manifest_of("pretraining", {"heldout_before": {"mlm_accuracy": 0.001}, "heldout_after": after})
    evaluation = encoder_evaluation(whole, manifest)
    assert evaluation is not None
    assert passes_floor(evaluation) == passes


def test_an_encoder_that_always_answers_the_commonest_token_does_not_pass(whole: WholeRecipe) -> None:
    statistics = {"heldout_before": {"mlm_accuracy": 0.0}, "heldout_after": {"mlm_accuracy": 0.0388, "mlm_loss": 6.0}}
    for accuracy, passes in ((0.0388, False), (0.02, True)):
        manifest = manifest_of("pretraining", {**statistics, "unigram_baseline": {"loss": 6.0, "accuracy": accuracy}})
        evaluation = encoder_evaluation(whole, manifest)
        assert evaluation is not None
        assert passes_floor(evaluation) == passes


def test_encoders_are_compared_by_minimal_pairs_if_the_recipe_says_so(write_recipe: Callable[..., str]) -> None:
    by_pairs = "tracking.encoder_metric='minimal_pairs'"
    with pytest.raises(RecipeError, match=r"tracking\.encoder_metric = 'minimal_pairs', but no pairs are scored"):
        RunRequest(recipe=write_recipe(), overrides=[by_pairs]).read()
    scored = [by_pairs, "pretraining.minimal_pairs={data = 'heldout'}"]
    whole = RunRequest(recipe=write_recipe(), overrides=scored).read()

    def evaluated(accuracy: float, **more: str) -> Evaluation:
        overall = {"accuracy": accuracy, "standard_error": 0.01, "pairs": 1_000, "ties": 0}
        found = {"data": "heldout", "data_sha256": "d", "method": "original", "overall": overall} | more
        evaluation = encoder_evaluation(whole, manifest_of("pretraining", {"minimal_pairs": found}))
        assert evaluation is not None
        return evaluation

    assert passes_floor(evaluated(0.62))
    assert not passes_floor(evaluated(0.505))  # chance is a half
    assert evaluated(0.6).data == evaluated(0.7).data
    assert len({evaluated(0.6, **more).data for more in ({}, {"data_sha256": "e"}, {"method": "word-l2r"})}) == 3
    assert encoder_evaluation(whole, manifest_of("pretraining", {})) is None


def test_the_data_of_a_table_is_its_rows_and_how_they_are_read(
    write_recipe: Callable[..., str], tmp_path: object
) -> None:
    """The same file with another dev_share or label column is other data; in another folder it is the same."""
    manifest = manifest_of("finetuning", statistics_with(TrialStatistics, metric="accuracy", score=0.7))

    def data_of(folder: str, **settings: Any) -> str:
        path = f"{tmp_path}/{folder}/rows.csv"
        storage.write_bytes(path, b"text,label\nx,a\ny,b\n")
        table = {"name": "own", "train_file": path, "dev_share": 0.5, **settings}
        finetuning = {"tasks": ("own",), "tables": (table,)}
        whole = RunRequest(recipe=write_recipe(), finetuning=finetuning).read()
        evaluation = finetuned_evaluation(whole, "own", manifest)
        assert evaluation is not None
        return evaluation.data

    first = data_of("here")
    assert data_of("there") == first == data_of("here", threshold=0.3, format="csv")
    others = [{"dev_share": 0.4}, {"label": "other"}, {"kind": "multi"}, {"text": ("a", "b")}]
    assert len({first, *(data_of("here", **other) for other in others)}) == 5


def test_a_score_in_words(whole: WholeRecipe) -> None:
    statistics = statistics_with(TrialStatistics, metric="accuracy", score=0.577, constant_baseline=0.5, dev_rows=1000)
    manifest = manifest_of("finetuning", statistics, seed=42)
    evaluation = finetuned_evaluation(whole, "cola", manifest)
    assert evaluation is not None
    assert score_in_words(evaluation, manifest, "CoLA/dev.tsv") == (
        f"Score: accuracy 0.5770 on CoLA/dev.tsv (digest {evaluation.data[:12]}), 1,000 rows, seed 42; "
        "chance gives 0.5000."
    )
    nested = manifest_of("pretraining", {}, pretraining={"seed": 7, "eval_examples": 512})
    assert ", 512 rows, seed 7;" in score_in_words(evaluation, nested, "held-out examples")
    assert score_in_words(None, manifest, "x") == "It has no score on development data."
