"""What a flow must be allowed to do in its namespace: the rules of `infra/kubernetes/launching.yaml`."""

from __future__ import annotations

from flows.kubernetes_jobs.api import Cluster
from pipelines.contract.errors import InputError

RIGHTS = (
    ("batch", "jobs", ("get", "list", "watch", "create", "patch", "delete")),
    ("", "pods", ("get", "list", "watch", "deletecollection")),
    ("", "pods/log", ("get",)),
    ("", "events", ("get", "list", "watch")),
    ("", "services", ("create",)),
    ("", "configmaps", ("create",)),
)
"""API group, resource and verbs."""


def require_rights(cluster: Cluster) -> None:
    """Ask the API for each right, without using it.

    Raises:
        InputError: the API does not answer, or denies one.
    """
    denied = [
        f"{verb} {resource}"
        for group, resource, verbs in RIGHTS
        for verb in verbs
        if not cluster.may(verb, group, resource)
    ]
    if denied:
        raise InputError(
            f"Kubernetes, namespace {cluster.namespace}: the flow may not {', '.join(denied)}; grant its user or "
            "service account the rights in infra/kubernetes/launching.yaml, or correct context and namespace of "
            "pretraining.cluster.kubernetes"
        )
