"""Credentials come from the environment, and no file of a run contains them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support import SUPPORT

from flows.parameters.requests import RunRequest
from pipelines.contract.credentials import holds_credentials, redacted, refusal
from pipelines.contract.errors import InputError

SCRIPT = str(SUPPORT / "flows" / "chain_of_stand_ins.py")
CANARY = "canary-7d1f0c55"
# Not MLFLOW_TRACKING_USERNAME: MLflow records with a model who logged it.
SECRETS = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "PREFECT_API_KEY",
    "HF_TOKEN",
)


def run_chain(recipe: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The real command line with its own Prefect server and stand-in stages, every secret a canary."""
    hidden = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {name: f"{CANARY}-{name}" for name in SECRETS}
    command = [sys.executable, SCRIPT, recipe, *arguments]
    return subprocess.run(command, capture_output=True, env=environment, timeout=240, check=False)


@pytest.mark.slow
def test_a_whole_run_leaves_no_secret_behind(write_recipe: Callable[..., str], tmp_path: Path) -> None:
    ended = run_chain(write_recipe())
    assert ended.returncode == 0, ended.stderr.decode()
    searched = {"stdout": ended.stdout, "stderr": ended.stderr}
    searched |= {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # It did search where things are logged: MLflow's and Prefect's databases, manifests, report, registered models.
    for name in ("ws/mlflow.db", "ws/prefect/prefect.db", "ws/pretraining/manifest.json", "ws/report.json"):
        assert len(searched[name]) > 100, sorted(searched)
    assert any(name.endswith("MLmodel") for name in searched)
    assert [name for name, content in searched.items() if CANARY.encode() in content] == []


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        (f"tracking.mlflow_tracking_uri=https://user:{CANARY}@mlflow.example.org", "MLFLOW_TRACKING_PASSWORD"),
        (f"tracking.mlflow_tracking_uri=postgresql+psycopg2://user:{CANARY}@db/mlflow", "PGPASSWORD"),
        (f'documents.sources=[{{inputs=["s3://AKIA:{CANARY}@bucket/text/*.txt"]}}]', "AWS_SECRET_ACCESS_KEY"),
        (f"run.workspace=s3://bucket/run?access_key=AKIA&secret_key={CANARY}", "AWS_SECRET_ACCESS_KEY"),
        (f"finetuning.encoder=https://{CANARY}@models.example.org/encoder", "MLFLOW_TRACKING_TOKEN"),
        # An unknown key is a user error too, and its message would show the value.
        (f"tracking.mlflow_tracking_ur=https://user:{CANARY}@mlflow.example.org", "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_a_recipe_with_credentials_is_refused(write_recipe: Callable[..., str], setting: str, remedy: str) -> None:
    with pytest.raises(InputError) as refused:
        RunRequest(recipe=write_recipe(), overrides=(setting,)).read()
    line = str(refused.value)
    assert setting.partition("=")[0] in line
    assert remedy in line
    assert "\n" not in line
    causes = [refused.value, refused.value.__cause__, refused.value.__context__]
    assert [cause for cause in causes if CANARY in repr(cause)] == []


@pytest.mark.slow
def test_the_command_refuses_it_before_it_writes_anything(write_recipe: Callable[..., str], tmp_path: Path) -> None:
    ended = run_chain(write_recipe(), "--set", f"tracking.mlflow_tracking_uri=https://user:{CANARY}@mlflow.example.org")
    assert ended.returncode == 2
    assert ended.stderr.decode().startswith("error: ")
    assert ended.stderr.count(b"\n") == 1
    assert CANARY.encode() not in ended.stdout + ended.stderr
    assert os.listdir(tmp_path) == ["recipe.toml"]


@pytest.mark.parametrize(
    "text",
    [
        "https://user:secret@host/path",
        "https://token@host",
        "s3://AKIA:a/b+c@bucket/key",
        "mysql+pymysql://root:x@127.0.0.1:3306/mlflow",
        "https://bucket.example.org/a.txt?X-Amz-Signature=0a",
        "s3://bucket/?region=eu&secret_key=0a",
        "https://host/a?api_key=0a",
        "gs://bucket/a?access_token=0a",
    ],
)
def test_credentials_are_found_and_taken_out(text: str) -> None:
    assert holds_credentials(text)
    line = f"MLflow is away ({text} does not answer)"
    assert "***" in redacted(line)
    assert not holds_credentials(redacted(text).replace("=***", "").replace("***@", ""))


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000",
        "https://mlflow.example.org/path/with@sign",
        "hdfs://namenode:8020/corpus/a@b.txt",
        "hdfs://reader@namenode/corpus",
        "postgresql://mlflow@db/mlflow",
        "s3://bucket/key?region=eu-west-1",
        "s3://bucket/tokens=10/part.txt",
        "models:/demo-encoder@champion",
        "sqlite:////workspaces/demo/mlflow.db",
        "user:secret@host is no URI",
    ],
)
def test_what_holds_none_is_let_through(text: str) -> None:
    assert not holds_credentials(text)


def test_an_unreachable_registry_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.promote import main

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{CANARY}@127.0.0.1:9")
    with pytest.raises(InputError, match=r"MLflow at http://\*\*\*@127\.0\.0\.1:9 cannot be used") as refused:
        main(["trial-cola", "--list"])
    assert CANARY not in str(refused.value)


def test_the_recipes_of_the_project_hold_none(repository: Path) -> None:
    import tomllib

    for path in (repository / "flows" / "recipes").glob("*.toml"):
        assert refusal(tomllib.loads(path.read_text())) is None, path
