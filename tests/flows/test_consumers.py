"""Registered models at a consumer's: a fresh virtual environment with what requirements.txt names, and nothing of ours.

pyfunc, transformers' own pipelines and an HTTP server must answer what training's own evaluation answers.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import registered_models as models

from flows.tracking import Tracker
from flows.whole_recipe import RunRequest
from pipelines import storage

START_SECONDS = 90.0
HIDDEN = ("PYTHONPATH", "VIRTUAL_ENV", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")

CONSUMER = """
    import importlib.util, json, os, socket, sys

    for name in ("pipelines", "training", "flows", "prefect", "apache_beam", "deepspeed"):
        assert importlib.util.find_spec(name) is None, name

    def refuse(self, address):
        raise OSError(f"no network here: {address}")

    socket.socket.connect = refuse
    import mlflow
    import transformers

    mlflow.set_tracking_uri(sys.argv[1])
    names, inputs = json.loads(sys.argv[2]), json.loads(sys.argv[3])

    def plain(answers):
        if hasattr(answers, "to_dict"):
            return answers.to_dict("records")
        return [answer.model_dump() if hasattr(answer, "model_dump") else answer for answer in answers]

    def uri(kind):
        return f"models:/{names[kind]}@champion"

    def entities(classify, text):
        starts = {0, *(index + 1 for index, character in enumerate(text) if character == " ")}
        found = classify(text, ignore_labels=[])
        return [entity["entity"] for entity in found if entity["start"] in starts]

    pyfunc = {kind: plain(mlflow.pyfunc.load_model(uri(kind)).predict(inputs[kind])) for kind in names}
    pipelines = {}
    for kind in ("encoder", "single", "pair", "regression"):
        directory = mlflow.artifacts.download_artifacts(uri(kind))
        parts = {"model": f"{directory}/model", "tokenizer": f"{directory}/components/tokenizer"}
        if kind == "encoder":
            answers = transformers.pipeline("fill-mask", **parts)(inputs[kind])
            pipelines[kind] = [answer[0]["token_str"] for answer in answers]
        else:
            pipelines[kind] = transformers.pipeline("text-classification", **parts)(inputs[kind], truncation=True)
    directory = mlflow.artifacts.download_artifacts(uri("tagging")) + "/artifacts/model"
    classify = transformers.pipeline("token-classification", model=directory)
    pipelines["tagging"] = entities(classify, inputs["tagging"][0])
    directory = mlflow.artifacts.download_artifacts(uri("squad")) + "/artifacts/model"
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(directory)
    pipelines["squad"] = len(transformers.AutoTokenizer.from_pretrained(directory)) == model.config.vocab_size
    print(json.dumps({"pyfunc": pyfunc, "pipelines": pipelines, "python": sys.prefix}))
"""


@dataclass(frozen=True)
class Registry:
    """A registry with a champion of every kind, and what each should answer to its inputs."""

    uri: str
    requirements: str
    expected: dict[str, Any]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    place = tmp_path_factory.mktemp("registered")
    recipe = place / "recipe.toml"
    recipe.write_text(
        f'[run]\nname = "trial"\nworkspace = "{place}/ws"\n[documents]\nsources = [{{ inputs = ["corpus.txt"] }}]\n'
    )
    whole = RunRequest(recipe=str(recipe)).read()
    tracker = Tracker(whole)
    run_id = tracker.client.create_run(tracker.experiment_id).info.run_id
    expected: dict[str, Any] = {}
    for kind in models.NAMES:
        directory = str(place / kind / "model")
        models.write(kind, directory)
        threshold = None
        if kind == "encoder":
            expected[kind] = models.own_words(directory)
        elif kind == "tagging":
            expected[kind] = models.own_tags(directory, place)
        elif kind == "squad":
            expected[kind] = models.own_answers(directory, place)
        elif kind == "squad-2":
            expected[kind], threshold = models.own_answers_2(directory, place)
        else:
            expected[kind] = models.own_classes(directory, kind)
        models.register(tracker, whole, run_id, kind, directory, threshold)
    stored = tracker.client.get_model_version_download_uri(models.NAMES["squad"], "1").removeprefix("file://")
    return Registry(tracker.uri, storage.join(stored, "requirements.txt"), expected)


@pytest.fixture(scope="module")
def consumer(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The python of a new virtual environment, made from uv's cache by hard links; skips where the cache lacks it."""
    uv = shutil.which("uv", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
    if uv is None:
        pytest.skip("uv is not installed, so no fresh environment is made")
    place = tmp_path_factory.mktemp("consumer") / "venv"
    python = place / "bin" / "python"
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(place)],
        [uv, "pip", "install", "--quiet", "--offline", "--python", str(python), "-r", registry.requirements],
    ):
        made = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if made.returncode:
            pytest.skip(f"uv's cache does not hold what a consumer installs: {made.stderr.strip().splitlines()[-1]}")
    yield python
    shutil.rmtree(place)


def environment(python: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    return kept | {"PATH": f"{python.parent}{os.pathsep}{kept['PATH']}", "HF_HUB_OFFLINE": "1"} | more


def test_a_fresh_environment_answers_as_training_does(registry: Registry, consumer: Path, tmp_path: Path) -> None:
    arguments = [registry.uri, json.dumps(models.NAMES), json.dumps(models.INPUTS)]
    ended = subprocess.run(
        [str(consumer), "-c", textwrap.dedent(CONSUMER), *arguments],
        capture_output=True,
        text=True,
        env=environment(consumer),
        cwd=tmp_path,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["python"] == str(consumer.parent.parent)
    expected = registry.expected
    for answers in (found["pyfunc"], found["pipelines"]):
        assert answers["encoder"] == expected["encoder"]
        for kind in ("single", "pair", "regression"):
            check_classes(answers[kind], expected[kind])
    for kind in ("squad", "squad-2"):
        check_answers(found["pyfunc"][kind], expected[kind])
    assert [answer["labels"] for answer in found["pyfunc"]["tagging"]] == expected["tagging"]
    assert found["pipelines"]["tagging"] == expected["tagging"][0]
    assert found["pipelines"]["squad"]
    # The models say different things to different texts, so the comparisons could have failed.
    assert len({answer["score"] for answer in expected["single"]}) == len(models.SENTENCES)
    assert 0 < expected["squad-2"].count("") < len(models.QUESTIONS)
    assert len({label for labels in expected["tagging"] for label in labels}) > 1


def check_classes(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [answer["label"] for answer in found] == [answer["label"] for answer in expected]
    assert [answer["score"] for answer in found] == pytest.approx(
        [answer["score"] for answer in expected], rel=1e-4, abs=1e-5
    )


def check_answers(found: list[dict[str, Any]], expected: list[str]) -> None:
    assert [answer["answer"] for answer in found] == expected
    for answer, question in zip(found, models.QUESTIONS, strict=True):
        assert question["context"][answer["start"] : answer["end"]] == answer["answer"]


Check = Callable[[list[dict[str, Any]], Any], None]


@pytest.mark.parametrize(
    ("kind", "body", "check"),
    [
        ("pair", {"dataframe_records": models.PAIRS}, check_classes),
        ("squad", {"inputs": models.QUESTIONS}, check_answers),
    ],
)
def test_a_server_answers_as_training_does(
    registry: Registry, consumer: Path, tmp_path: Path, kind: str, body: dict[str, Any], check: Check
) -> None:
    with served(registry, consumer, models.NAMES[kind], tmp_path) as address:
        request = urllib.request.Request(
            f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            predictions = json.load(response)["predictions"]
    check(predictions, registry.expected[kind])


@contextmanager
def served(registry: Registry, consumer: Path, name: str, place: Path) -> Iterator[str]:
    """`mlflow models serve` on a free port of loopback, ended with all its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    log = place / "served.log"
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            [str(consumer.parent / "mlflow"), "models", "serve", "-m", f"models:/{name}@champion", *options],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment(consumer, MLFLOW_TRACKING_URI=registry.uri),
            cwd=place,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{address}/ping"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200  # type: ignore[no-any-return]  # urllib leaves it untyped
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
