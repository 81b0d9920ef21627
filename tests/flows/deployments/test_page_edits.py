"""Edits that users make on Prefect's page are kept: the merge alone, then `flows.deploy` on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.flows.prefect_site import PrefectSite, prefect_site

from flows.deployments.page_edits import ABSENT, UNKNOWN, merge
from flows.parameters.deployed_request import overlaid
from flows.parameters.requests import PretrainRequest

PLAIN = st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["a", "b"])
VALUES = st.recursive(PLAIN, lambda inner: st.dictionaries(st.sampled_from("xyz"), inner, max_size=3), max_leaves=6)
MAPPINGS = st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=3)


@pytest.mark.parametrize(
    ("last", "here", "new", "expected", "edited"),
    [
        (1, 1, 2, 2, False),  # unchanged on the page, changed in the file
        (1, 3, 1, 3, True),  # changed on the page
        (1, 3, 2, 3, True),  # changed in both
        (1, 2, 2, 2, False),  # changed to the same value
        (UNKNOWN, 1, 2, 1, True),
        (UNKNOWN, 2, 2, 2, False),
        ({"a": 1}, {"a": 1, "own": 2}, {"a": 3}, {"a": 3, "own": 2}, True),
        ({"a": 1, "b": 1}, {"b": 1}, {"a": 1, "b": 2}, {"b": 2}, True),  # deleted on the page
        ({"a": 1, "b": 1}, {"a": 1, "b": 1}, {"a": 1}, {"a": 1}, False),  # deleted from the file
        ({"a": 1}, {"a": 1, "b": None}, {"a": 1}, {"a": 1, "b": None}, False),  # the page writes null
        ({"a": [1]}, {"a": [1, 2]}, {"a": [3]}, {"a": [1, 2]}, True),
    ],
)
def test_a_merge(last: Any, here: Any, new: Any, expected: Any, edited: bool) -> None:
    value, edits = merge(last, here, new, "x")
    assert value == expected
    assert bool(edits) == edited


@pytest.mark.slow
@given(MAPPINGS, MAPPINGS, MAPPINGS)
def test_every_value_is_a_persons_or_the_files(last: Any, here: Any, new: Any) -> None:
    assert merge(last, last, new)[1] == []
    assert merge(last, here, here) == (here, [])
    value, edits = merge(last, here, new)
    # A second deployment of the same file changes nothing, whatever is recorded of the first.
    assert merge(new, value, new)[0] == value
    assert len({edit.path for edit in edits}) == len(edits)


def test_edits_are_said_on_one_line_each_and_show_no_environment() -> None:
    _, edits = merge(
        {},
        {"description": "a\n\x1b[31mb", "job_variables": {"env": {"TOKEN": "hunter2"}}},
        {"description": "c"},
    )
    said = [str(edit) for edit in edits]
    assert said == [
        'description = "a\\n\\u001b[31mb" (prefect.yaml: c)',
        "job_variables (differs from prefect.yaml)",
    ]
    assert str(merge(True, ABSENT, True, "schedules.x")[1][0]) == "schedules.x = none (prefect.yaml: true)"


def test_a_change_of_a_request_keeps_the_rest() -> None:
    below = {"recipe": "r", "pretraining": {"seed": 1, "ranks": 2}, "overrides": ["a", "b"]}
    above = {"pretraining": {"seed": 3}, "overrides": ["c"], "workspace": None}
    assert overlaid(below, above) == {
        "recipe": "r",
        "pretraining": {"seed": 3, "ranks": 2},
        "overrides": ["c"],
        "workspace": None,
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[PrefectSite]:
    with prefect_site(str(tmp_path_factory.mktemp("prefect")), str(repository)) as running:
        deploy(running)
        yield running


def deploy(site: PrefectSite, *arguments: str) -> list[str]:
    done = site.command("flows.deploy", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def patch(site: PrefectSite, path: str, body: dict[str, Any]) -> None:
    site._request("PATCH", path, body).raise_for_status()


def settings(deployment: dict[str, Any]) -> dict[str, Any]:
    """Everything that a user may set, without identifiers and times."""
    names = ("parameters", "paused", "description", "tags", "job_variables", "work_queue_name", "concurrency_options")
    kept = {name: deployment[name] for name in names}
    schedules = [
        {name: each[name] for name in ("slug", "active", "schedule", "parameters", "max_scheduled_runs")}
        for each in deployment["schedules"]
    ]
    limit = deployment["global_concurrency_limit"]
    return {**kept, "limit": limit and limit["limit"], "schedules": sorted(schedules, key=str)}


def test_deploying_again_keeps_what_people_set_and_says_so(site: PrefectSite) -> None:
    pretrain, nightly = site.deployment("pretrain", "pretrain"), site.deployment("end-to-end", "nightly-smoke")
    untouched = site.deployment("preprocess", "preprocess")
    of_file = settings(pretrain)
    schedules = f"/deployments/{pretrain['id']}/schedules"
    # On the page: the weekly schedule on and at another hour, an own one, other parameters, a limit, a pause.
    own = {"schedule": {"interval": 3600}, "active": True, "max_scheduled_runs": 2, "parameters": {}}
    site.post(schedules, [own])  # type: ignore[arg-type]  # the only path that takes a list
    weekly = {"active": True, "schedule": {"cron": "0 4 * * 3", "timezone": "Europe/Zurich"}}
    patch(site, f"{schedules}/{pretrain['schedules'][0]['id']}", weekly)
    filled_in = {"rebuild": False, "overrides": [], "documents": None} | {"stage_retries": 5}
    request = {"recipe": "flows/recipes/bert-base.toml", "pretraining": {"seed": 7}}
    del filled_in["documents"]
    changed = {"parameters": {"request": {**request, **filled_in}}, "paused": True, "concurrency_limit": 3}
    patch(site, f"/deployments/{pretrain['id']}", {**changed, "tags": pretrain["tags"]})
    site._request("DELETE", f"/deployments/{nightly['id']}/schedules/{nightly['schedules'][0]['id']}")
    patch(site, "/work_pools/clozeworks-cpu", {"concurrency_limit": 4})
    by_people = [
        settings(site.deployment(flow, name))
        for flow, name in (("pretrain", "pretrain"), ("end-to-end", "nightly-smoke"))
    ]

    said = deploy(site)

    after = [
        settings(site.deployment(flow, name))
        for flow, name in (("pretrain", "pretrain"), ("end-to-end", "nightly-smoke"))
    ]
    for before, now in zip(by_people, after, strict=True):
        assert now["parameters"]["request"].items() <= before["parameters"]["request"].items()
        assert {**now, "parameters": None} == {**before, "parameters": None}
    assert after[1]["schedules"] == []
    assert settings(site.deployment("preprocess", "preprocess")) == settings(untouched)
    left = [line.strip() for line in said if "kept:" in line]
    for expected in (
        "kept: parameters.request.stage_retries = 5 (prefect.yaml: 2)",
        'kept: parameters.request.pretraining = {"seed": 7} (prefect.yaml: none)',
        "kept: paused = true (prefect.yaml: false)",
        "kept: concurrency_limit = 3 (prefect.yaml: 1)",
        "kept: schedules.weekly.when = cron 0 4 * * 3 Europe/Zurich (prefect.yaml: cron 0 6 * * 6 UTC)",
        "kept: schedules.weekly.active = true (prefect.yaml: false)",
    ):
        assert expected in left
    assert any(line.startswith("kept: schedules.without a slug") for line in left)
    assert any(line.startswith("kept: schedules.nightly = none") for line in left)
    assert "pool        clozeworks-cpu (process) exists; kept: limit 4" in said
    assert not any("rebuild" in line or "overrides" in line for line in left)
    assert said.count("deployment  preprocess/preprocess up to date") == 1
    assert deploy(site) == said  # and again

    said = deploy(site, "--reset", "pretrain")
    assert "deployment  pretrain/pretrain reset to prefect.yaml" in said
    assert settings(site.deployment("pretrain", "pretrain")) == of_file
    assert settings(site.deployment("end-to-end", "nightly-smoke")) == after[1]


def test_a_deployment_of_an_earlier_release_keeps_everything(site: PrefectSite) -> None:
    """Without a record of the last deployment, any difference may be a user's."""
    finetune = site.deployment("finetune", "finetune")
    names = ("name", "flow_id", "entrypoint", "parameters", "tags", "work_pool_name", "parameter_openapi_schema")
    body = {name: finetune[name] for name in names} | {"labels": {}, "schedules": [], "paused": True}
    site.post("/deployments/", body)
    before = settings(site.deployment("finetune", "finetune"))
    said = deploy(site)
    assert settings(site.deployment("finetune", "finetune"))["schedules"] == before["schedules"] == []
    assert "    kept: paused = true (prefect.yaml: false)" in said
    deploy(site, "--reset", "finetune")
    assert [each["slug"] for each in site.deployment("finetune", "finetune")["schedules"]] == ["weekly"]


def test_an_unknown_name_is_refused_before_anything_is_done(site: PrefectSite) -> None:
    done = site.command("flows.deploy", "--reset", "pretrian")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --reset pretrian: not deployed with these types; there are: preprocess,")
    assert done.stdout == ""


def test_the_form_is_grouped_and_shows_the_recipes_values(site: PrefectSite) -> None:
    schema = site.deployment("end-to-end", "end-to-end")["parameter_openapi_schema"]
    request = schema["definitions"]["RunRequest"]["properties"]
    by_position = sorted(request, key=lambda name: int(request[name]["position"]))
    assert by_position[:9] == [
        *("recipe", "workspace", "preprocessing", "documents", "vocabulary", "examples"),
        *("model", "pretraining", "finetuning"),
    ]
    assert "parent_run_id" not in request
    assert all(field["title"] and field["description"] for field in request.values())
    assert "size = 30522; lowercase = true" in request["vocabulary"]["description"]
    pretraining = schema["definitions"]["PretrainingForm"]["properties"]
    assert pretraining["learning_rate"]["description"].startswith("Recipe: 0.0001.")
    assert pretraining["adam_beta1"]["description"].startswith("Default: 0.9.")
    # The page sends defaults with a run, where they would override a recipe that the user names instead.
    assert {field.get("default") for field in pretraining.values()} == {None}
    nested = schema["definitions"]["WordOrderForm"]["properties"]
    assert all(field["description"].startswith("Default: ") for field in nested.values())


def test_a_run_may_change_single_values_of_its_deployments_request(
    site: PrefectSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = site.deployment("end-to-end", "nightly-smoke")
    run = site.run(deployment, {"workspace": "elsewhere", "vocabulary": {"size": 5000}})
    for name in ("PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.setenv(name, site.environment[name])
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", run)
    given = site.get(f"/flow_runs/{run}")["parameters"]["request"]
    assert "recipe" not in given
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: site.environment["PREFECT_API_URL"]}):
        request = PretrainRequest.model_validate({"workspace": "elsewhere"})
        # A request with a recipe is used alone.
        alone = PretrainRequest.model_validate({"recipe": "r.toml"})
    assert (request.recipe, request.workspace, request.rebuild) == ("flows/recipes/demo.toml", "elsewhere", True)
    assert request.overrides[0] == "run.name=nightly-smoke"
    assert (alone.rebuild, alone.overrides) == (False, ())
    path = f"/deployments/{deployment['id']}/create_flow_run"
    refused = site.refused(path, {"parameters": {"request": {"workspce": "w"}}})
    assert "workspce" in refused


def test_a_worker_runs_a_changed_request(site: PrefectSite, tmp_path: Path) -> None:
    """The recipe is the deployment's, the workspace that of the run, which has no examples yet."""
    workspace = str(tmp_path / "empty")
    site.start_worker("clozeworks-gpu")
    deploy(site, "--reset", "pretrain")
    run = site.run(site.deployment("pretrain", "pretrain"), {"workspace": workspace, "stage_retries": 0})
    state = site.wait_until_ended(run)
    assert state["type"] == "FAILED"
    assert f"{workspace}/" in state["message"], state
