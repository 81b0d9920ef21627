"""The objects of one Job, made from its template: a ConfigMap with the recipe, a headless Service, the indexed Job."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped]  # PyYAML has no types

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.workspace import DISTILLATION, PRETRAINING
from training.settings.cluster import KubernetesConfig

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "training_job.yaml")
CONTAINER = "training"
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
DIGEST_ANNOTATION = "clozeworks/digest"
FLOW_ANNOTATION = "clozeworks/flow"
KEPT_SECONDS = 86_400
"""Time that a finished Job stays, with its pods' logs."""

_STAGES_WITH_METRICS = {"training.pretrain": PRETRAINING, "training.distill": DISTILLATION}
_RECIPE = "/recipe/recipe.toml"
_STAGING = "/staging"
_NAME_CHARACTERS = 40

Document = dict[str, Any]


@dataclass(frozen=True)
class JobRequest:
    """What a Job runs: `python -m module recipe arguments`, `ranks` times on each of `nodes` nodes."""

    module: str
    recipe_text: str
    arguments: tuple[str, ...]
    """Arguments after the recipe."""
    run_name: str
    workspace: str
    local_directory: str | None
    nodes: int
    ranks: int
    config: KubernetesConfig

    @property
    def name(self) -> str:
        """Name of the Job: the same at each attempt, and of one Job at a time for a stage of a workspace."""
        digest = hashlib.sha256(f"{self.workspace}\n{self.module}".encode()).hexdigest()[:8]
        readable = re.sub(r"[^a-z0-9]+", "-", f"{self.module.rpartition('.')[2]}-{self.run_name}".lower())
        return f"{readable[:_NAME_CHARACTERS].strip('-')}-{digest}"


@dataclass(frozen=True)
class JobObjects:
    """The objects of a Job, as the API takes them; the Job is created first, and owns the others."""

    job: Document
    service: Document
    config_map: Document

    @property
    def digest(self) -> str:
        """Identifies what the Job runs, without variables of one attempt such as MLflow's run."""
        digest: str = self.job["metadata"]["annotations"][DIGEST_ANNOTATION]
        return digest


def read_template(config: KubernetesConfig) -> tuple[Document, Document]:
    """Service and Job of the template.

    Raises:
        InputError: it cannot be read, or does not have one of each.
    """
    path = config.template or TEMPLATE
    where = f"pretraining.cluster.kubernetes.template = {path!r}"
    try:
        with open(path, encoding="utf-8") as stream:
            documents = [document for document in yaml.safe_load_all(stream) if document]
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{where}: {' '.join(str(error).split())}; correct the path or the file") from error
    kinds = {document.get("kind"): document for document in documents if isinstance(document, dict)}
    try:
        service, job = kinds["Service"], kinds["Job"]
        containers = [container["name"] for container in job["spec"]["template"]["spec"]["containers"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: needs a Service and a Job with a pod template; start from {TEMPLATE}") from error
    if CONTAINER not in containers:
        raise InputError(f"{where}: no container {CONTAINER!r} (found: {containers}); start from {TEMPLATE}")
    return service, job


def objects_of(request: JobRequest, environment: Mapping[str, str]) -> JobObjects:
    """The objects of a Job; it is suspended until the others exist.

    Raises:
        InputError: the template does not fit, or the workspace is not on the volume that the pods mount.
    """
    service, job = (copy.deepcopy(document) for document in read_template(request.config))
    name, spec = request.name, job["spec"]
    labels = {**job["metadata"].get("labels", {}), "app.kubernetes.io/managed-by": "clozeworks"}
    spec |= {"completions": request.nodes, "parallelism": request.nodes, "suspend": True}
    spec |= {"ttlSecondsAfterFinished": KEPT_SECONDS, "activeDeadlineSeconds": request.config.lease_seconds}
    pod = spec["template"]["spec"]
    pod["subdomain"] = name
    _keep_apart(pod, name)
    container = next(container for container in pod["containers"] if container["name"] == CONTAINER)
    if request.config.image is not None:
        container["image"] = request.config.image
    container["args"] = [_RECIPE, *request.arguments]
    _request_gpus(container, request)
    _mount_workspace(pod, container, request)
    for volume in pod.get("volumes", []):
        if "configMap" in volume:
            volume["configMap"] = {"name": name}
    container["envFrom"] = [{"secretRef": {"name": secret}} for secret in request.config.secrets]
    own = {"NODES": str(request.nodes), "PROCESSES_PER_NODE": str(request.ranks), "MODULE": request.module}
    own |= {"MASTER_ADDR": f"{name}-0.{name}", "WORKSPACE": request.workspace}
    _set_variables(container, own)
    digest = hashlib.sha256(json.dumps([spec, request.recipe_text], sort_keys=True).encode()).hexdigest()
    # Not part of the digest: MLflow's run is another one at the next attempt of a flow.
    _set_variables(container, environment)
    job["metadata"] = {"name": name, "labels": labels, "annotations": {DIGEST_ANNOTATION: digest}}
    service["metadata"] = {"name": name, "labels": labels}
    service["spec"]["selector"] = {JOB_NAME_LABEL: name}
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": labels},
        "data": {os.path.basename(_RECIPE): request.recipe_text},
    }
    return JobObjects(job, service, config_map)


def _set_variables(container: Document, values: Mapping[str, str]) -> None:
    kept = [variable for variable in container.get("env", []) if variable["name"] not in values]
    container["env"] = kept + [{"name": name, "value": value} for name, value in values.items()]


def _keep_apart(pod: Document, name: str) -> None:
    """One pod of this Job per node; another Job's pods may share one."""
    rules = pod.get("affinity", {}).get("podAntiAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", [])
    for rule in rules:
        rule["labelSelector"] = {"matchLabels": {JOB_NAME_LABEL: name}}


def _request_gpus(container: Document, request: JobRequest) -> None:
    limits = container.setdefault("resources", {}).setdefault("limits", {})
    for resource in [resource for resource in limits if "/" in resource]:
        del limits[resource]
    if request.config.gpu_resource != "none":
        limits[request.config.gpu_resource] = str(request.ranks)
    # YAML reads some quantities as numbers; the API's are text.
    for quantities in container["resources"].values():
        quantities |= {name: str(quantity) for name, quantity in quantities.items()}


def _follow_metrics(container: Document, workspace: str, request: JobRequest) -> None:
    """Let the probe look at the metrics that the stage writes, or remove it where the stage writes none."""
    stage = _STAGES_WITH_METRICS.get(request.module)
    if stage is None:
        container.pop("livenessProbe", None)
        return
    probe = container.get("livenessProbe", {}).get("exec", {}).get("command", [])
    for number, word in enumerate(probe):
        if word.startswith(f"{workspace}/{PRETRAINING}."):
            probe[number] = word.replace(f"{workspace}/{PRETRAINING}", storage.join(request.workspace, stage))


def _mount_workspace(pod: Document, container: Document, request: JobRequest) -> None:
    """Mount the shared volume; with a workspace in an object store, an empty one for what a node stages."""
    volume = next((volume for volume in pod.get("volumes", []) if "persistentVolumeClaim" in volume), None)
    if volume is None:
        return
    mount = next(mount for mount in container["volumeMounts"] if mount["name"] == volume["name"])
    at = mount["mountPath"]
    _follow_metrics(container, at, request)
    if not storage.is_local(request.workspace):
        del volume["persistentVolumeClaim"]
        volume["emptyDir"] = {}
        mount["mountPath"] = request.local_directory or _STAGING
        if request.local_directory is None:
            _set_variables(container, {"XDG_CACHE_HOME": _STAGING})
        return
    volume["persistentVolumeClaim"] = {"claimName": request.config.volume_claim}
    if os.path.commonpath([at, os.path.abspath(storage.local_path(request.workspace))]) != at:
        raise InputError(
            f"run.workspace = {request.workspace!r}: pods mount the shared volume at {at}; put the workspace under "
            f"{at}, or into an object store"
        )
