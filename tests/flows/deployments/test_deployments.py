"""flows/prefect.yaml and its forms, without a server: all entries exist, are valid and have the intended values."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError as ValidationFailed
from prefect.utilities.schema_tools.validation import validate
from pydantic import ValidationError

from flows.comparison.execution import whole_study
from flows.comparison.study_file import read_study
from flows.deploy import PREFECT_FILE, deployments_of, template_with_devices
from flows.deployments.deployment import flow_of
from flows.deployments.form import with_recipe
from flows.dispatch.parts import request_of_part
from flows.parameters.forms import form_of, toml_value
from flows.parameters.requests import PretrainRequest, RunRequest, StudyRequest
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import read_recipe
from training.settings.model import ModelConfig
from training.settings.pretraining import PretrainingConfig
from training.settings.tables import TableConfig

with open(PREFECT_FILE) as stream:
    DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load(stream)["deployments"]

JSON_VALUES = st.recursive(
    st.booleans() | st.integers(-(1 << 62), 1 << 62) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda each: str(each["name"]))
def test_a_deployment_is_whole(deployment: dict[str, Any], repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    request = flow.validate_parameters(deployment["parameters"])["request"]
    if isinstance(request, StudyRequest):
        assert whole_study(read_study(request.study)).recipe.path == "flows/studies/../recipes/tiny.toml"
    else:
        assert request.read().recipe.path.startswith("flows/recipes/")
    is_part = "part" in deployment["tags"]
    schedules = deployment.get("schedules", [])
    assert [CronSchedule(cron=each["cron"], timezone=each["timezone"]) for each in schedules] or is_part
    is_active = any(schedule.get("active", True) for schedule in schedules)
    assert is_active == (deployment["name"] == "nightly-smoke")
    if deployment["name"] != "trial-part":
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert "clozeworks" in deployment["tags"]
    assert deployment["enforce_parameter_schema"] is True


def test_types_of_pools_choose_deployments() -> None:
    types = ["process", "docker", "kubernetes"]
    assert deployments_of(types).keys() == {each["name"] for each in DEPLOYMENTS}
    cluster = {"end-to-end-cluster", "preprocess-part", "pretrain-part", "trial-part"}
    single = {"preprocess", "pretrain", "finetune", "end-to-end", "study", "nightly-smoke"}
    assert set(deployments_of(["process"])) == single | cluster


def test_the_parts_that_a_deployment_names_exist_in_other_pools() -> None:
    pools = {(each["entrypoint"], each["name"]): each["work_pool"]["name"] for each in DEPLOYMENTS}
    whole = next(each for each in DEPLOYMENTS if each["name"] == "end-to-end-cluster")
    request = whole["parameters"]["request"]
    parts = [
        pools["flows/preprocess.py:preprocess", request["preprocess_deployment"]],
        pools["flows/pretrain.py:pretrain", request["pretrain_deployment"]],
        pools["flows/finetune.py:trial", request["trials_deployment"]],
    ]
    assert len({whole["work_pool"]["name"], *parts}) == 4, "a run must not wait for a place that it takes itself"


def test_the_form_of_a_part_accepts_what_the_run_that_waits_sends(repository: Path) -> None:
    demo = os.path.join(repository, "flows", "recipes", "demo.toml")
    forms = {"pretraining": {"log_every_steps": 2}, "documents": {"num_shards": 2}}
    request = RunRequest(recipe=demo, workspace="w", rebuild=True, parent_run_id="abc", stage_retries=2, **forms)
    sent = request_of_part(request, PretrainRequest)
    overrides = ["documents.num_shards=2", "pretraining.log_every_steps=2", 'run.workspace="w"']
    assert sorted(sent.pop("overrides")) == overrides
    assert sent == {"recipe": demo, "rebuild": True, "parent_run_id": "abc", "stage_retries": 2}
    part = PretrainRequest.model_validate({**sent, "overrides": overrides}).read()
    assert part.sections() == request.read().sections(), "also what only the form of another flow has set"
    schema = parameter_schema(flow_of("flows/pretrain.py:pretrain")).model_dump(exclude_unset=True)
    shown, _ = with_recipe(schema, {"request": {"recipe": demo}})
    assert "parent_run_id" not in shown["definitions"]["PretrainRequest"]["properties"]
    validate({"request": {**sent, "overrides": overrides}}, shown, raise_on_error=True)
    with pytest.raises(ValidationFailed, match="'rebuilt' does not match"):
        validate({"request": {"recipe": demo, "rebuilt": True}}, shown, raise_on_error=True)


def test_types_of_pools_that_need_an_image() -> None:
    assert set(deployments_of(["docker"]).values()) == {"docker"}


def test_a_kubernetes_job_gets_gpus_and_shared_memory() -> None:
    pod = {"containers": [{"name": "prefect-job", "resources": {"limits": {"cpu": "{{ cpu_limit }}"}}}]}
    template = {
        "variables": {"properties": {}},
        "job_configuration": {"job_manifest": {"spec": {"template": {"spec": pod}}}},
    }
    changed = template_with_devices(template, "kubernetes")["job_configuration"]["job_manifest"]["spec"]["template"]
    assert changed["spec"]["containers"][0]["resources"]["limits"] == {
        "cpu": "{{ cpu_limit }}",
        "nvidia.com/gpu": "{{ gpus }}",
    }
    assert changed["spec"]["volumes"] == [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    assert "volumes" not in pod
    assert template_with_devices(template, "docker") is template


@given(JSON_VALUES)
def test_values_pass_through_toml(value: Any) -> None:
    assert tomllib.loads(f"value = {toml_value(value)}")["value"] == value


def test_a_form_says_what_a_section_says(repository: Path) -> None:
    """A recipe's settings, filled into the forms, make another recipe's sections equal to its own."""
    recipes = os.path.join(repository, "flows", "recipes")
    demo = read_recipe(os.path.join(recipes, "demo.toml")).tables
    names = ("documents", "vocabulary", "examples", "model", "pretraining", "finetuning")
    # A setting of the other recipe that the demo lacks would be kept.
    empty = os.path.join(recipes, "bert-base.toml")
    request = RunRequest(recipe=empty, **{name: demo[name] for name in names}, overrides=("run.name=demo",))
    filled = read_recipe(empty, request.all_overrides()).tables
    for name in names:
        assert {key: filled[name][key] for key in demo[name]} == demo[name]


def test_forms_keep_bounds_and_explanations_and_leave_out_nothing() -> None:
    for section in (ModelConfig, PretrainingConfig):
        assert form_of(section).model_fields.keys() == section.model_fields.keys()
        assert form_of(section)().overrides("x") == []

    def flow(request: PretrainRequest) -> None: ...

    definitions = parameter_schema(flow).model_dump()["definitions"]
    assert definitions["PretrainRequest"]["required"] == ["recipe"]
    assert definitions["PretrainingForm"]["properties"]["learning_rate"]["anyOf"] == [
        {"minimum": 1e-10, "maximum": 10.0, "type": "number"},
        {"type": "null"},
    ]
    assert set(definitions["PhaseConfig"]["required"]) == {"max_seq_length"}
    with pytest.raises(ValidationError, match=r"pretraining\.zero_stag"):
        PretrainRequest(recipe="x", pretraining={"zero_stag": 2})


def test_overrides_go_before_forms_and_forms_before_the_recipe(repository: Path) -> None:
    demo = os.path.join(repository, "flows", "recipes", "demo.toml")
    request = RunRequest(
        recipe=demo,
        workspace='a "b"',
        pretraining={"seed": 2, "log_every_steps": 7, "learning_rate": None},
        finetuning={"word_order": {"max_train_examples": 10}},
        overrides=("pretraining.seed=3",),
    )
    whole = request.read()
    assert (whole.pretraining.seed, whole.pretraining.log_every_steps, whole.run.workspace) == (3, 7, 'a "b"')
    assert whole.pretraining.learning_rate == 4e-3
    assert (whole.finetuning.word_order.max_train_examples, whole.finetuning.word_order.min_words) == (10, 8)


def test_a_form_takes_tables(repository: Path) -> None:
    demo = os.path.join(repository, "flows", "recipes", "demo.toml")
    tables = [
        {"name": "mail", "train_file": "mail.csv", "dev_share": 0.1, "class_weights": [{"label": "a", "weight": 2.0}]},
        {"name": "posts", "train_file": "posts", "dev_file": "dev", "text": ["title", "body"], "kind": "multi"},
    ]
    request = RunRequest(recipe=demo, finetuning={"tasks": ["word-order", "mail", "posts"], "tables": tables})
    found = request.read().finetuning
    assert [table.name for table in found.tables] == ["mail", "posts"]
    assert found.tables[0].class_weights[0].weight == 2.0
    assert found.tables[1].text == ("title", "body")

    def flow(request: RunRequest) -> None: ...

    definitions = parameter_schema(flow).model_dump()["definitions"]
    properties = definitions["TableConfig"]["properties"]
    assert set(properties) == set(TableConfig.model_fields)
    assert definitions["TableConfig"]["required"] == ["name", "train_file"]
    assert properties["threshold"]["description"].startswith('kind = "multi": a label is predicted')
    with pytest.raises(ValidationError, match="neither of dev_file and dev_share"):
        RunRequest(recipe=demo, finetuning={"tables": [{"name": "mail", "train_file": "mail.csv"}]})


def test_a_value_that_only_the_sections_together_refuse_gives_one_line(repository: Path) -> None:
    demo = os.path.join(repository, "flows", "recipes", "demo.toml")
    with pytest.raises(InputError) as caught:
        RunRequest(recipe=demo, model={"hidden_size": 130, "num_attention_heads": 4}).read()
    assert str(caught.value).startswith(f"{demo}: [model] hidden_size = 130 is not a multiple of")
