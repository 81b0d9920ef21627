"""Artifacts on Prefect's page, in real runs of stand-in stages: bars, tables, attempts, and reasons of failures."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.states import Failed

from flows.parameters.requests import RunRequest
from flows.running import failures as failure_hooks
from flows.running import stage_run
from flows.running.launch import StageError, StageTimeoutError
from flows.running.progress_bar import artifact_key, percentage_in
from flows.running.stage_run import is_worth_retrying
from pipelines.contract.errors import InputError


@pytest.mark.parametrize(
    ("line", "percentage"),
    [
        ("pretraining: step 550/2,200: loss 7.6, 804 tokens/s", 25.0),
        ("finetuning: word-order/pretrained: epoch 1/4: training loss 0.7, dev mcc 0.1", 25.0),
        ("documents: 5 of 16 shards after 4 s", 31.25),
        ("documents: 17 of 16 shards after 4 s", 100.0),
        ("pretraining: step 0: held-out at length 32: loss 7.6, MLM accuracy 0.0000", None),
        ("tracking: step 3/0: none", None),
        ("ratio 1/2", None),
    ],
)
def test_progress_is_read_off_the_lines_of_the_stages(line: str, percentage: float | None) -> None:
    assert percentage_in(line) == percentage


def test_keys_are_what_prefect_takes() -> None:
    assert artifact_key("BERT_base.v1", "progress") == "bert-base-v1-progress"


def test_only_failures_that_may_pass_are_tried_again() -> None:
    def tried_again(error: Exception) -> bool:
        return is_worth_retrying(None, None, Failed(data=error))  # type: ignore[arg-type]  # only the state is looked at

    assert tried_again(StageError("pretraining", -9, "killed", []))
    assert not tried_again(StageTimeoutError("pretraining", -15, "too long", []))
    assert not tried_again(InputError("x.toml: run.name = 1: no"))
    assert not tried_again(ValueError("ours"))


@pytest.mark.usefixtures("prefect_server", "stand_ins")
def test_attempts_at_a_stage_are_one_run_in_mlflow(
    write_recipe: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.preprocess import preprocess

    monkeypatch.setattr(stage_run, "RETRY_DELAY_SECONDS", 0.1)
    monkeypatch.setenv("STAND_IN_FAILS_UNTIL", str(tmp_path / "failed"))
    recipe = write_recipe()
    with pytest.raises(StageError):
        preprocess(RunRequest(recipe=recipe))
    (tmp_path / "failed").unlink()
    outcome = preprocess(RunRequest(recipe=recipe, stage_retries=1))
    assert [stage.built for stage in outcome.stages] == [True, True, True]
    rebuilt = preprocess(RunRequest(recipe=recipe, rebuild=True))
    assert [stage.built for stage in rebuilt.stages] == [True, True, True]

    client = MlflowClient(f"sqlite:///{tmp_path}/ws/mlflow.db")
    experiment = client.get_experiment_by_name("clozeworks")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    told = [(run.info.run_name, run.info.status) for run in runs if run.info.run_name == "documents"]
    # The second flow resumes the run that failed in the first one.
    assert told == [("documents", "FINISHED"), ("documents", "FINISHED")]


@pytest.mark.usefixtures("prefect_server", "stand_ins")
def test_a_failure_is_told_in_the_message_and_in_an_artifact(
    write_recipe: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.preprocess import preprocess

    monkeypatch.setenv("STAND_IN_FAILS", "vocabulary")
    state = preprocess(RunRequest(recipe=write_recipe()), return_state=True)
    assert state.is_failed()
    run = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        message = client.read_flow_run(run).state.message
        within = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
        found = {artifact.key: artifact.data for artifact in client.read_artifacts(artifact_filter=within)}
    assert message.startswith("Flow run encountered an exception: StageError: vocabulary ended with exit code 1: ")
    assert "RuntimeError: asked to fail" in message.splitlines()[0]
    assert "; the stage is not complete (not built yet); its last lines:\n" in message
    quoted = re.sub("^    ", "", found["preprocess-failure"], flags=re.MULTILINE)
    assert quoted.startswith(message.rstrip())
    assert quoted.rstrip().endswith("pre-training resumes from its checkpoint.")


@pytest.mark.usefixtures("prefect_server", "stand_ins")
def test_after_a_mistake_in_the_recipe_the_artifact_says_to_correct_it(write_recipe: Callable[..., str]) -> None:
    from flows.preprocess import preprocess

    state = preprocess(RunRequest(recipe=write_recipe(("passes = 2", "passes = 0"))), return_state=True)
    assert state.is_failed()
    within = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        found = {artifact.key: str(artifact.data) for artifact in client.read_artifacts(artifact_filter=within)}
    assert "examples.passes = 0" in found["preprocess-failure"]
    assert found["preprocess-failure"].rstrip().endswith(failure_hooks.CORRECTION)


def test_a_time_out_is_met_with_more_time() -> None:
    state = Failed(data=StageTimeoutError("pretraining", -15, "ended", []))
    assert failure_hooks.advice_for(state) == failure_hooks.MORE_TIME
    assert failure_hooks.advice_for(Failed(data=StageError("x", 1, "y", []))) == failure_hooks.NEXT_STEP
