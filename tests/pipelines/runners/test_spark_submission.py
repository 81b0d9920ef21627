"""What the runner `spark` passes to spark-submit, without Spark: the command, the properties, the job's jar."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.support.preprocessing.small_run import run_all

from pipelines import shard_corpus
from pipelines.contract.errors import InputError
from pipelines.runners import maven

SUBMIT = """#!/usr/bin/env python3
import json, os, sys
arguments = sys.argv[1:]
named = dict(zip(arguments[:-1:2], arguments[1:-1:2]))
path = named["--properties-file"]
with open(path) as stream:
    properties = stream.read()
with open(os.environ["SUBMITTED"], "a") as stream:
    row = {"named": named, "jar": arguments[-1], "properties": properties, "mode": os.stat(path).st_mode}
    stream.write(json.dumps(row) + chr(10))
print("12:00:00 INFO the driver's log")
print(os.environ.get("SAYS", ""))
sys.exit(int(os.environ.get("ENDS", "0")))
"""


@pytest.fixture
def spark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed Spark whose spark-submit records what it is given."""
    home = tmp_path / "spark"
    for folder in ("bin", "conf", "jars"):
        (home / folder).mkdir(parents=True)
    (home / "bin" / "spark-submit").write_text(SUBMIT)
    (home / "bin" / "spark-submit").chmod(0o755)
    (home / "conf" / "spark-defaults.conf").write_text("spark.eventLog.enabled true")
    jars = tmp_path / "beam-jars"
    jars.mkdir()
    for name in ("beam-runners-spark-3.jar", "slf4j.jar"):
        (jars / name).touch()
    (home / "jars" / "slf4j.jar").touch()
    monkeypatch.setattr(maven, "fetch_jars", lambda *_: str(jars))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SUBMITTED", str(tmp_path / "submitted"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a \\ b")
    return home


def arguments(recipe: str, spark: Path, workspace: Path) -> list[str]:
    settings = {
        "spark.home": str(spark),
        "spark.master": "spark://head:7077",
        "spark.conf": {"spark.executor.instances": "7"},
        "environment": {"REGION": "here"},
        "pass_environment": ["AWS_SECRET_ACCESS_KEY"],
    }
    given = [part for name, value in settings.items() for part in ("--set", f"preprocessing.{name}={toml(value)}")]
    return [recipe, "--workspace", str(workspace), "--runner=spark", *given]


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {json.dumps(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def submitted(tmp_path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (tmp_path / "submitted").read_text().splitlines()]


def test_an_application_gets_its_jar_its_sizes_and_its_variables(
    built: tuple[Path, str], spark: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shard_corpus.run(arguments(built[1], spark, tmp_path / "w"))
    (one,) = submitted(tmp_path)
    named = one["named"]
    assert isinstance(named, dict)
    assert (named["--master"], named["--deploy-mode"], named["--name"]) == (
        "spark://head:7077",
        "client",
        "clozeworks-documents",
    )
    assert named["--jars"].endswith("/beam-runners-spark-3.jar"), "a jar that Spark has is not replaced"
    lines = str(one["properties"]).splitlines()
    assert lines[0] == "spark.eventLog.enabled true"
    assert {"spark.executor.cores 1", "spark.executor.memory 1g", "spark.executor.instances 7"} <= {*lines}
    assert {"spark.executorEnv.REGION here", "spark.executorEnv.AWS_SECRET_ACCESS_KEY a \\\\ b"} <= {*lines}
    mode = one["mode"]
    assert isinstance(mode, int)
    assert stat.S_IMODE(mode) == 0o600
    assert not os.path.exists(named["--properties-file"])
    with zipfile.ZipFile(str(one["jar"])) as jar:
        texts = {name: jar.read(name).decode() for name in jar.namelist()}
    assert "a \\ b" not in "".join(texts.values()).replace("\\\\", "\\"), "the secret is in the jar"
    said = capfd.readouterr()
    assert "with the job's jar built" in said.err
    assert "12:00:00 INFO the driver's log" in said.err


def test_equal_jobs_of_two_processes_have_one_jar(built: tuple[Path, str], spark: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pipelines.runners import maven; jars = sys.argv.pop(1); maven.fetch_jars = lambda *_: jars; "
    )
    code += "from pipelines import shard_corpus; shard_corpus.run(sys.argv[1:])"
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, str(tmp_path / "beam-jars"), *arguments(built[1], spark, tmp_path / "w")]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    first, second = submitted(tmp_path)
    assert first["jar"] == second["jar"]


@pytest.mark.parametrize(
    ("says", "kind", "message"),
    [
        ("pipelines.contract.errors.InputError: the file is odd", InputError, "the file is odd"),
        (
            "12:00:01 ERROR StandaloneSchedulerBackend: no master",
            ConnectionError,
            "exit code 3: .*: no master; its",
        ),
    ],
)
def test_a_failed_driver_is_one_line(
    built: tuple[Path, str],
    spark: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    says: str,
    kind: type[Exception],
    message: str,
) -> None:
    monkeypatch.setenv("ENDS", "3")
    monkeypatch.setenv("SAYS", says)
    with pytest.raises(kind, match=message):
        shard_corpus.run(arguments(built[1], spark, tmp_path / "w"))


def test_a_cluster_is_required(built: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\[preprocessing\] runner = 'spark' needs spark.master, such as"):
        shard_corpus.run([built[1], "--workspace", str(tmp_path), "--runner=spark"])


def test_a_job_server_that_does_not_answer_is_one_line(built: tuple[Path, str], tmp_path: Path) -> None:
    setting = ["--set", "preprocessing.job_endpoint=127.0.0.1:1"]
    with pytest.raises(InputError, match=r"preprocessing.job_endpoint = '127.0.0.1:1' cannot be reached"):
        shard_corpus.run([built[1], "--workspace", str(tmp_path), "--runner=spark", *setting])


def test_variables_that_are_passed_must_be_set(built: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pass_environment names NOT_SET_HERE, which is not set here"):
        run_all(built[1], "--workspace", str(tmp_path), "--set", 'preprocessing.pass_environment=["NOT_SET_HERE"]')
