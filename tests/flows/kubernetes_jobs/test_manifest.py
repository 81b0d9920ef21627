"""The objects of a Job: what the settings change in the template, and what they must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from flows.kubernetes_jobs.manifest import JobRequest, objects_of, read_template
from pipelines.contract.errors import InputError
from training.settings.cluster import KubernetesConfig

REMOTE = JobRequest(
    module="training.pretrain",
    recipe_text="[run]\nname = 'demo'\n",
    arguments=("--set", "pretraining.seed=7"),
    run_name="My demo",
    workspace="s3://bucket/run",
    local_directory=None,
    nodes=3,
    ranks=4,
    config=KubernetesConfig(image="registry/clozeworks/training:9", secrets=("s3-credentials",)),
)
SHARED = replace(REMOTE, workspace="/workspace/run")


def container(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]
    return found


def variables(job: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in container(job)["env"]}


@pytest.mark.parametrize("request_", [REMOTE, SHARED], ids=["object-store", "shared-volume"])
def test_the_schemas_of_kubernetes_accept_every_object(request_: JobRequest) -> None:
    objects = objects_of(request_, {"MLFLOW_TRACKING_URI": "http://mlflow:5000"})
    for document in (objects.job, objects.service, objects.config_map):
        for version in ("1.31", "1.37"):
            kubernetes_validate.validate(document, version, strict=True)


def test_sizes_image_and_names_come_from_the_settings() -> None:
    objects = objects_of(REMOTE, {"NCCL_DEBUG": "INFO"})
    name, spec = REMOTE.name, objects.job["spec"]
    assert name.startswith("pretrain-my-demo-")
    assert (spec["completions"], spec["parallelism"], spec["suspend"]) == (3, 3, True)
    assert container(objects.job)["image"] == "registry/clozeworks/training:9"
    assert container(objects.job)["args"] == ["/recipe/recipe.toml", "--set", "pretraining.seed=7"]
    assert container(objects.job)["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert container(objects.job)["envFrom"] == [{"secretRef": {"name": "s3-credentials"}}]
    assert variables(objects.job) | {"MASTER_ADDR": f"{name}-0.{name}", "NCCL_DEBUG": "INFO"} == variables(objects.job)
    assert variables(objects.job) | {"NODES": "3", "PROCESSES_PER_NODE": "4"} == variables(objects.job)
    assert objects.service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    without = objects_of(replace(REMOTE, config=KubernetesConfig(gpu_resource="none")), {})
    assert not [each for each in container(without.job)["resources"]["limits"] if "/" in each]


def test_an_object_store_needs_no_shared_volume() -> None:
    pod = objects_of(REMOTE, {}).job["spec"]["template"]["spec"]
    assert not [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert variables(objects_of(REMOTE, {}).job)["XDG_CACHE_HOME"] == "/staging"
    assert (
        "s3://bucket/run/pretraining.building/metrics.jsonl" in pod["containers"][0]["livenessProbe"]["exec"]["command"]
    )
    shared = objects_of(SHARED, {}).job["spec"]["template"]["spec"]
    assert [v["persistentVolumeClaim"] for v in shared["volumes"] if "persistentVolumeClaim" in v] == [
        {"claimName": "workspace"}
    ]
    with pytest.raises(InputError, match="put the workspace under /workspace, or into an object store"):
        objects_of(replace(SHARED, workspace="/tmp/run"), {})


def test_the_probe_watches_the_stage_that_runs() -> None:
    def probe(module: str) -> list[str]:
        command: list[str] = container(objects_of(replace(SHARED, module=module), {}).job)["livenessProbe"]["exec"][
            "command"
        ]
        return command

    assert "/workspace/run/distillation.building/metrics.jsonl" in probe("training.distill")
    assert "livenessProbe" not in container(objects_of(replace(SHARED, module="training.finetune"), {}).job)


def test_the_digest_ignores_what_differs_between_attempts() -> None:
    first = objects_of(REMOTE, {"MLFLOW_RUN_ID": "a"})
    assert first.digest == objects_of(REMOTE, {"MLFLOW_RUN_ID": "b"}).digest
    assert first.digest != objects_of(replace(REMOTE, recipe_text="[run]\n"), {}).digest
    assert first.digest != objects_of(replace(REMOTE, nodes=2), {}).digest
    assert (
        REMOTE.name == replace(REMOTE, nodes=2, recipe_text="").name != replace(REMOTE, workspace="s3://b/other").name
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [("kind: Job\n", "needs a Service and a Job"), ("a: [", "correct the path or the file"), (None, "No such file")],
)
def test_a_template_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, text: str | None, told: str) -> None:
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=told) as caught:
        read_template(KubernetesConfig(template=str(path)))
    assert str(caught.value).startswith("pretraining.cluster.kubernetes.template = ")
    assert "\n" not in str(caught.value)
