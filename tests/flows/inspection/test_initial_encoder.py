"""What the flows know of an initial encoder: checks, sizes, states, and where its name is shown afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.flows.finished_workspace import PRETRAINING, write_workspace

from flows import end_to_end, estimate
from flows.inspection.workspace import statuses_of_recipe
from flows.parameters.requests import RunRequest
from flows.parameters.whole_recipe import WholeRecipe
from flows.registry.model_card import CardFacts, card_text
from flows.report.facts import gather
from flows.report.page import html_page
from flows.running import plan
from flows.tracking.runs import LINEAGE_TAG, Tracker
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, read_manifest, write_manifest
from pipelines.contract.recipe import read_recipe

CONFIG = {
    "model_type": "bert",
    "vocab_size": 30_522,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
LINEAGE = {"relation": "initial_encoder", "source": "released/bert", "digest": "0123456789abcdef"}
IN_WORDS = "initial encoder released/bert (digest 0123456789ab)"


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    storage.write_bytes(f"{tmp_path}/bert/config.json", json.dumps(CONFIG).encode())
    return f"{tmp_path}/bert"


@pytest.fixture
def recipe(write_recipe: Callable[..., str]) -> str:
    """Without [model]."""
    path = write_recipe()
    text = Path(path).read_text()
    Path(path).write_text(text[: text.index("[model]")] + text[text.index("[pretraining]") :])
    return path


def chosen(encoder: str) -> tuple[str, ...]:
    return (f"pretraining.initial_encoder={json.dumps(encoder)}",)


def test_the_model_of_a_recipe_is_that_of_its_encoder(recipe: str, encoder: str) -> None:
    whole = RunRequest(recipe=recipe, overrides=chosen(encoder)).read()
    assert (whole.model.hidden_size, whole.model.num_hidden_layers) == (24, 3)
    longer = ("pretraining.phases.0.max_seq_length=48", "examples.lengths.0.max_seq_length=48")
    with pytest.raises(InputError, match=r"pretraining\.phases\.0\.max_seq_length = 48 exceeds .* = 40"):
        WholeRecipe.check(read_recipe(recipe, [*chosen(encoder), *longer]))
    with pytest.raises(InputError, match=r"model\.intermediate_size = 64, but .* has 48"):
        WholeRecipe.check(read_recipe(recipe, [*chosen(encoder), "model.intermediate_size=64"]))
    # Unknown sizes contradict nothing.
    elsewhere = ("pretraining.initial_encoder='models:/bert/1'", "model.max_position_embeddings=16")
    WholeRecipe.check(read_recipe(recipe, elsewhere))
    with pytest.raises(InputError, match=r"exceeds model\.max_position_embeddings = 16"):
        WholeRecipe.check(read_recipe(recipe, elsewhere[1:]))


def test_a_form_sets_it(recipe: str, encoder: str) -> None:
    request = RunRequest.model_validate({"recipe": recipe, "pretraining": {"initial_encoder": encoder}})
    assert request.read().model.hidden_size == 24


def test_an_estimate_has_its_sizes(recipe: str, encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    def estimated(source: str) -> Any:
        command = [recipe, "--corpus-bytes", "1e6", "--json", "--set", *chosen(source)]
        assert estimate.main(command) == 0
        return json.loads(capsys.readouterr().out)

    known = estimated(encoder)
    assert known["parameters"] < 1_000_000
    assert not any("initial_encoder" in line for line in known["warnings"])
    (warning,) = (line for line in estimated("models:/bert/1")["warnings"] if "initial_encoder" in line)
    assert warning == "pretraining.initial_encoder = models:/bert/1 is not on this machine: sizes are those of [model]"
    # A wrong path or step is not elsewhere: the warning is the error that the run would report.
    (warning,) = (line for line in estimated(f"{encoder}/absent")["warnings"] if "initial_encoder" in line)
    assert warning.startswith(f"pretraining.initial_encoder: {encoder}/absent: no such directory; give ")
    assert warning.endswith("; until then sizes are those of [model]")


def test_a_run_refuses_it_before_the_first_stage(recipe: str, encoder: str, tmp_path: Path) -> None:
    whole = RunRequest(recipe=recipe, overrides=chosen(encoder)).read()
    with pytest.raises(InputError, match=r"\[vocabulary\] trains another one; set vocabulary\.from = "):
        plan.require_initial_encoder(whole)
    brought = f"vocabulary.from={json.dumps(encoder)}"
    for source, message in ((f"{tmp_path}/absent", "no such directory"), (encoder, "no weights")):
        request = RunRequest(recipe=recipe, overrides=(*chosen(source), brought))
        whole = request.read()
        with pytest.raises(InputError, match=message):
            plan.require_initial_encoder(whole)
        with pytest.raises(InputError, match=message):
            end_to_end._require_inputs(whole, request)
    assert not os.path.exists(tmp_path / "ws")


def test_a_key_resolves_aliases_in_the_registry_of_the_run(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    seen: list[str] = []

    def inputs(_sections: object) -> Any:
        seen.append(os.environ["MLFLOW_TRACKING_URI"])
        return SimpleNamespace(key=StageKey("pretraining", 2, {}, {}))

    monkeypatch.setattr(plan.training, "pretraining_inputs", inputs)
    whole = RunRequest(recipe=recipe, overrides=chosen("models:/bert/1")).read()
    plan.pretraining_stage(whole).key_digest()
    assert seen == [f"sqlite:///{whole.run.workspace}/mlflow.db"]
    assert "MLFLOW_TRACKING_URI" not in os.environ


def finished(recipe: str, encoder: str) -> tuple[WholeRecipe, Any]:
    whole = RunRequest(recipe=recipe, overrides=chosen(encoder)).read()
    outcome = write_workspace(whole)
    directory = f"{whole.run.workspace}/pretraining"
    key = StageKey(
        "pretraining", 2, {"model": {"num_hidden_layers": 7, "hidden_size": 8, "num_attention_heads": 1}}, {}
    )
    write_manifest(directory, key.manifest([], {**PRETRAINING, "lineage": [LINEAGE]}, "0"))
    return whole, outcome


def test_a_result_stays_complete_without_its_encoder_and_names_it(recipe: str, tmp_path: Path) -> None:
    whole, outcome = finished(recipe, f"{tmp_path}/gone")
    (status,) = (each for each in statuses_of_recipe(whole) if each.name == "pretraining")
    assert status.state == "complete"
    assert status.detail.endswith(f", from {IN_WORDS}")
    facts = gather(whole, outcome, "sqlite:////ws/mlflow.db", None)
    assert facts["model"]["num_hidden_layers"] == 7
    assert f"Started from <bdi>{IN_WORDS}</bdi>" in html_page(facts)


def test_the_card_names_it_and_takes_its_digits_for_no_scores(recipe: str, tmp_path: Path) -> None:
    whole, _ = finished(recipe, f"{tmp_path}/gone")
    manifest = read_manifest(f"{whole.run.workspace}/pretraining")
    assert manifest is not None
    extended = manifest.model_copy(
        update={"statistics": {**manifest.statistics, "lineage": [{**LINEAGE, "extended": {"positions": 512}}]}}
    )
    origin = {"pretraining": extended}
    card = card_text(CardFacts("trial-encoder", "fill-mask", False, extended, origin, "", "", ()))
    assert "pre-training started from released/bert." in card
    assert f"| pre-training started from | {IN_WORDS}, 512 positions added |" in card
    assert "| lineage" not in card


def test_mlflow_gets_it_as_a_tag_and_its_digest_as_a_data_set() -> None:
    logged: dict[str, Any] = {"metrics": {}, "tags": {}, "inputs": {}}
    client = SimpleNamespace(
        get_run=lambda _run: SimpleNamespace(data=SimpleNamespace(tags={}, metrics={})),
        log_text=lambda *_: None,
        log_batch=lambda _run, metrics=(), tags=(), **_: (
            logged["metrics"].update({each.key: each.value for each in metrics}),
            logged["tags"].update({each.key: each.value for each in tags}),
        ),
        log_inputs=lambda _run, datasets: logged["inputs"].update(
            {each.dataset.name: json.loads(each.dataset.source) for each in datasets}
        ),
    )
    tracker = Tracker.__new__(Tracker)
    tracker.client, tracker._workspace = client, "ws"  # type: ignore[assignment]
    key = StageKey("pretraining", 2, {}, {"examples": "e" * 64, "initial_encoder": "f" * 64})
    manifest: Manifest = key.manifest([], {"steps": 9, "lineage": [{**LINEAGE, "step": 4}]}, "0")
    tracker._log_stage("1", {"pretraining": manifest}, 2.0)
    assert logged["tags"][LINEAGE_TAG].startswith("initial encoder released/bert of step 4 ")
    assert logged["metrics"] == {"stage_seconds": 2.0, "steps": 9.0}
    assert logged["inputs"] == {"examples": {"uri": "ws/examples"}, "initial_encoder": {"uri": "released/bert"}}
