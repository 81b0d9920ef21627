"""What is asked of the Kubernetes API before a chain starts, with a stand-in that answers over loopback HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.kubernetes_jobs.rights import RIGHTS
from flows.launching import kubernetes
from flows.launching.job import Job
from flows.launching.launchers import launcher_of
from flows.parameters.whole_recipe import WholeRecipe
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import read_recipe


class StandIn:
    """An API server that grants rights, and accepts objects that are not to be created."""

    def __init__(self) -> None:
        self.denied: set[tuple[str, str]] = set()
        self.refusal: tuple[int, str] | None = None
        self.asked: list[str] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.asked.append(self.path)
                code, answer = stand_in.answer(self.path, body)
                data = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path.endswith("/selfsubjectaccessreviews"):
            asked = body["spec"]["resourceAttributes"]
            assert asked["namespace"] == "training"
            resource = "/".join(part for part in (asked["resource"], asked["subresource"]) if part)
            allowed = (asked["verb"], resource) not in self.denied
            return 201, body | {"status": {"allowed": allowed}}
        if self.refusal is not None:
            return self.refusal[0], {"kind": "Status", "message": self.refusal[1], "code": self.refusal[0]}
        return 201, body


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    stand_in = StandIn()
    entry: dict[str, Any] = {"apiVersion": "v1", "kind": "Config", "current-context": "c"}
    entry["clusters"] = [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{stand_in.server.server_port}"}}]
    entry["contexts"] = [{"name": "c", "context": {"cluster": "c", "user": "u"}}]
    entry["users"] = [{"name": "u", "user": {}}]
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(entry))
    # The client reads the variable when it is imported.
    from kubernetes.config import kube_config

    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()


def check(*settings: str) -> None:
    ours = ["kind=kubernetes", "kubernetes.namespace=training", *settings]
    overrides = [f"pretraining.cluster.{setting}" for setting in ours]
    recipe = read_recipe("flows/recipes/demo.toml", [*overrides, "pretraining.ranks=1", "run.workspace=/workspace/w"])
    whole = WholeRecipe.check(recipe)
    jobs = [Job.of(whole, "training.pretrain", 1), Job.of(whole, "training.finetune", 1, one_node=True)]
    launcher_of(jobs[0]).check(jobs, whole)


def test_every_right_is_asked_for_and_nothing_is_created(api: StandIn) -> None:
    check()
    reviews = [path for path in api.asked if "selfsubjectaccessreviews" in path]
    tried = [path for path in api.asked if path not in reviews]
    assert len(reviews) == sum(len(verbs) for _, _, verbs in RIGHTS)
    assert [path.partition("?")[0].rpartition("/")[2] for path in tried] == ["jobs", "services", "configmaps"] * 2
    assert all("dryRun=All" in path for path in tried)


def test_the_rights_are_those_of_the_manifest(repository: Path) -> None:
    documents = yaml.safe_load_all((repository / "infra" / "kubernetes" / "launching.yaml").read_text())
    role = next(document for document in documents if document["kind"] == "Role")
    granted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert {(group, resource, verb) for group, resource, verbs in RIGHTS for verb in verbs} == granted


def test_missing_rights_are_named_in_one_line(api: StandIn) -> None:
    api.denied = {("deletecollection", "pods"), ("get", "pods/log")}
    with pytest.raises(InputError) as caught:
        check()
    assert str(caught.value).startswith(
        "Kubernetes, namespace training: the flow may not deletecollection pods, get pods/log; grant its user or"
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((404, 'namespaces "training" not found'), 'namespaces "training" not found; create the namespace, or correct'),
        ((401, "Unauthorized"), "Unauthorized; renew the credentials of kubeconfig"),
        ((403, "exceeded quota: gpus"), "exceeded quota: gpus; grant the flow's user"),
    ],
)
def test_what_the_api_refuses_is_said_before_anything_starts(
    api: StandIn, refusal: tuple[int, str], words: str
) -> None:
    api.refusal = refusal
    with pytest.raises(InputError) as caught:
        check()
    assert words in str(caught.value)


def test_a_job_that_runs_already_is_no_reason_to_refuse(api: StandIn) -> None:
    api.refusal = (409, "AlreadyExists")
    check()


def test_an_api_that_does_not_answer_is_named(api: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "_PATIENCE_SECONDS", 0.0)
    api.server.shutdown()
    api.server.server_close()
    with pytest.raises(InputError, match=r"the API does not answer \(.*refused.*\); check that it runs, KUBECONFIG"):
        check()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("kubernetes.context=nowhere", "kubernetes.context = 'nowhere'"),
        ("kubernetes.template=nowhere.yaml", "kubernetes.template = "),
    ],
)
def test_settings_that_name_nothing_are_refused(api: StandIn, setting: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check(setting)
    assert api.asked == []
