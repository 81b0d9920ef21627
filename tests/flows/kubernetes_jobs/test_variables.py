"""Which variables of a flow are written into a Job, and that no credential is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from flows.kubernetes_jobs.manifest import JobRequest, objects_of
from flows.kubernetes_jobs.variables import PASSED, variables_of
from flows.parameters.whole_recipe import WholeRecipe
from pipelines.contract.credentials import is_credential
from pipelines.contract.recipe import read_recipe
from pipelines.contract.recipe_text import RecipeError
from training.settings.cluster import KubernetesConfig

CANARY = "canary-4c1be7"  # a made-up credential
CREDENTIALS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_SHARED_CREDENTIALS_FILE", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"),
    *("AZURE_STORAGE_CONNECTION_STRING", "AZURE_CLIENT_SECRET", "GOOGLE_APPLICATION_CREDENTIALS", "HF_TOKEN"),
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"),
    *("PGPASSWORD", "WANDB_API_KEY", "CLOZEWORKS_TEST_SECRET", "GITHUB_TOKEN", "REGISTRY_AUTH"),
)
OF_THIS_MACHINE = ("HOME", "PATH", "PYTHONPATH", "AWS_CONFIG_FILE", "AWS_PROFILE", "AWS_CA_BUNDLE", "TORCH_HOME")
REQUEST = JobRequest("training.pretrain", "", (), "run", "s3://bucket/run", None, 2, 8, KubernetesConfig())


def test_no_credential_and_nothing_of_this_machine_is_in_the_objects_of_a_job() -> None:
    ours = {name: f"{CANARY}-{name}" for name in (*CREDENTIALS, *OF_THIS_MACHINE, "CLOZEWORKS_LIFELINE_PID")}
    ours |= {"MLFLOW_TRACKING_URI": f"https://user:{CANARY}@mlflow", "AWS_ENDPOINT_URL": f"https://{CANARY}@store"}
    # Also names that a user asks for.
    found = variables_of(ours, ("HF_TOKEN", "PGPASSWORD"))
    objects = objects_of(REQUEST, found.values)
    assert CANARY not in json.dumps([objects.job, objects.service, objects.config_map])
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI", "HF_TOKEN"} <= set(found.credentials)
    # Prefect's are not for the ranks, so nobody has to put them into a secret.
    assert not {"PREFECT_API_KEY", "GITHUB_TOKEN"} & set(found.credentials)


def test_what_a_pod_needs_passes() -> None:
    ours = {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "MLFLOW_RUN_ID": "7", "AWS_ENDPOINT_URL": "http://store:7070"}
    ours |= {"TOKENIZERS_PARALLELISM": "false", "NCCL_DEBUG": "INFO", "HTTPS_PROXY": "http://proxy", "NUMBERS": "1"}
    assert variables_of(ours, ("HTTPS_PROXY",)).values == {n: v for n, v in ours.items() if n != "NUMBERS"}


@pytest.mark.parametrize("uri", ["sqlite:////ws/mlflow.db", "/ws/mlruns", "http://127.0.0.1:5000", "http://localhost"])
def test_a_database_of_this_machine_means_nothing_to_a_pod(uri: str) -> None:
    found = variables_of({"MLFLOW_TRACKING_URI": uri, "MLFLOW_RUN_ID": "7"}, ())
    assert (found.values, found.local) == ({}, ("MLFLOW_TRACKING_URI",))
    assert variables_of({"MLFLOW_TRACKING_URI": uri}, ("MLFLOW_TRACKING_URI",)).values


def test_a_recipe_that_passes_a_credential_into_a_job_is_refused() -> None:
    settings = ["pretraining.cluster.kind=kubernetes", "pretraining.ranks=1"]
    with pytest.raises(
        RecipeError, match=r"environment names HF_TOKEN with kind = 'kubernetes': values of credentials"
    ):
        WholeRecipe.check(
            read_recipe("flows/recipes/demo.toml", [*settings, "pretraining.cluster.environment=['HF_TOKEN', 'A']"])
        )


def test_names_that_pass_are_no_credentials_and_stand_in_the_readme(repository: Path) -> None:
    assert [name for name in PASSED if is_credential(name)] == []
    text = (repository / "flows" / "README.md").read_text()
    assert set(PASSED) - set(re.findall(r"[A-Z][A-Z0-9_]+", text)) == set()
