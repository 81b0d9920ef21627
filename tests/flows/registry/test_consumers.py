"""Registered models at a consumer: in a fresh environment with the packages of requirements.txt, without this project.

pyfunc, transformers' own pipelines on registered models and on directories, and an HTTP server must answer what
training's own evaluation answers: for cased, uncased and accent-keeping vocabularies, for short and for too long texts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support import SUPPORT
from tests.support.flows import registered_models as models

from flows.parameters.requests import RunRequest
from flows.tracking.runs import Tracker
from pipelines.contract import storage
from pipelines.inputs.registered_models import CACHE_VARIABLE
from training.stages.encoders import encoder_directory
from training.tagging.scores import span_scores

START_SECONDS = 300.0
HIDDEN = ("PYTHONPATH", "VIRTUAL_ENV", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")

CONSUMER = str(SUPPORT / "flows" / "consumer.py")


@dataclass(frozen=True)
class Registry:
    """A registry with a champion of every variant, and the files written for each."""

    uri: str
    requirements: str
    written: dict[str, models.Written]


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
    written = {}
    for variant in models.VARIANTS:
        written[variant.key] = models.write(variant, place / variant.key)
        models.register(tracker, whole, run_id, variant, written[variant.key])
    stored = tracker.client.get_model_version_download_uri(models.VARIANTS[0].name, "1").removeprefix("file://")
    return Registry(tracker.uri, storage.join(stored, "requirements.txt"), written)


@pytest.fixture(scope="module")
def consumer(registry: Registry, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The python of a new virtual environment with the packages of requirements.txt, in the versions of our lock file.

    Packages come from the index, or by hard links from uv's cache, and their hashes are those of the lock file. Skips
    only where the index cannot be reached and the cache does not hold them.
    """
    uv = shutil.which("uv", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
    assert uv is not None, "uv is part of the environment that tests run in"
    place = tmp_path_factory.mktemp("consumer") / "venv"
    python = place / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(place)], check=True, timeout=120)
    lock = ["--constraint", str(repository / "requirements.lock")]
    install = [uv, "pip", "install", "--quiet", "--python", str(python), "--requirement", registry.requirements, *lock]
    made = uv_run(install)
    if made.returncode and uv_run([*install, "--offline"]).returncode:
        # One small package distinguishes an unreachable index from an incomplete one.
        asked = uv_run(
            [uv, "pip", "install", "--python", str(python), "--dry-run", "--refresh", "--reinstall", "idna", *lock]
        )
        if asked.returncode:
            pytest.skip(f"the package index cannot be reached: {asked.stderr.strip().splitlines()[-1]}")
        pytest.fail(f"what a consumer installs cannot be installed: {made.stderr}")
    yield python
    shutil.rmtree(place)


def uv_run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


def environment(python: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    path = f"{python.parent}{os.pathsep}{kept['PATH']}"
    # Under load one thread is faster than several that wait for one another.
    return kept | {"PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | more


@pytest.fixture(scope="module")
def found(registry: Registry, consumer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answers of the fresh environment to every variant's inputs."""
    place = tmp_path_factory.mktemp("asked")
    asked = {
        "features": models.FEATURES,
        "models": {
            variant.key: {
                "name": variant.name,
                "kind": variant.kind,
                "inputs": models.INPUTS[variant.kind],
                "directory": registry.written[variant.key].directory,
            }
            for variant in models.VARIANTS
        },
    }
    (place / "asked.json").write_text(json.dumps(asked))
    ended = subprocess.run(
        [str(consumer), "-P", CONSUMER, registry.uri, str(place / "asked.json")],
        capture_output=True,
        text=True,
        env=environment(consumer),
        cwd=place,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    answers: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert answers["python"] == str(consumer.parent.parent)
    return answers


@pytest.mark.parametrize("variant", models.VARIANTS, ids=[variant.key for variant in models.VARIANTS])
def test_a_fresh_environment_answers_as_training_does(
    registry: Registry, found: dict[str, Any], variant: models.Variant
) -> None:
    written, kind = registry.written[variant.key], variant.kind
    pyfunc = found["pyfunc"][variant.key]
    plain = [found[place][variant.key] for place in ("registered", "directories")]
    if kind == "encoder":
        assert pyfunc == written.expected
        vectors = models.own_features(written.directory)
        for answers in plain:
            assert answers["words"] == written.expected
            for vector, expected in zip(answers["features"], vectors, strict=True):
                assert vector == pytest.approx(expected, rel=1e-4, abs=1e-5)
    elif kind == "tagging":
        labels = [answer["labels"] for answer in pyfunc]
        assert labels == written.expected
        assert span_scores([gold for _, gold in models.TAGGED], labels)["f1"] == written.training_f1
        for answers in plain:
            assert answers["first"] == written.expected[0]
            assert answers["longest"] > 8
    elif kind.startswith("squad"):
        check_answers(pyfunc, written.expected)
        assert plain == [[len(models.QUESTIONS), models.CONFIG.max_position_embeddings]] * 2
    elif "means" in kind:
        (check_labels if kind.startswith("multi") else check_means)(pyfunc, written.expected)
        assert all("model type" in answer for answer in plain)
    elif kind == "multi":
        check_labels(pyfunc, written.expected)
        # Both truncate at the model's positions, which the first two pairs do not reach.
        own = models.own_probabilities(written.directory, models.CONFIG.max_position_embeddings)
        for answers in plain:
            for answer, expected in zip(answers[:2], own[:2], strict=True):
                shares = {each["label"]: each["score"] for each in answer}
                assert shares == pytest.approx(expected, rel=1e-4, abs=1e-5)
    else:
        check_classes(pyfunc, written.expected)
        check_classes(plain[0], written.expected)
        # The directory truncates at its positions, the registered model at the length of training's rows.
        check_classes(plain[1], models.own_classes(written.directory, kind, models.CONFIG.max_position_embeddings))


@pytest.mark.slow
def test_the_comparisons_could_have_failed(registry: Registry) -> None:
    """The models give different answers to different texts, and to a text in different casings."""
    expected = {key: written.expected for key, written in registry.written.items()}
    assert len({answer["score"] for answer in expected["cased-single"]}) == len(models.SENTENCES)
    assert len(set(expected["cased-encoder"])) > 1
    assert 0 < expected["cased-squad-2"].count("") < len(models.QUESTIONS)
    assert len({answer["label"] for answer in expected["cased-table"]}) > 1
    for kind in ("means", "means-single", "means-regression"):
        assert len({answer["score"] for answer in expected[f"cased-{kind}"]}) == len(models.INPUTS[kind])
    for kind in ("multi", "multi-means"):
        assert len({len(answer["labels"]) for answer in expected[f"cased-{kind}"]}) > 1
    for variant in models.VARIANTS:
        if variant.kind == "encoder":
            expected[variant.key] = models.own_features(registry.written[variant.key].directory)
    for kind in ("encoder", "tagging", "single", "squad"):
        answers = [json.dumps(each) for key, each in expected.items() if key.endswith(f"-{kind}")]
        assert len({*answers}) == len(answers) > 1, kind
    scores = {key: written.training_f1 for key, written in registry.written.items() if written.training_f1 is not None}
    assert scores["cased-tagging"] > 0.9 > 0.6 > scores["uncased-tagging"]


@pytest.mark.slow
@pytest.mark.parametrize("variant", models.VARIANTS, ids=[variant.key for variant in models.VARIANTS])
def test_our_own_reading_of_a_registered_model_is_that_of_its_directory(
    registry: Registry, variant: models.Variant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    directory = encoder_directory(f"models:/{variant.name}@champion")
    written = registry.written[variant.key].directory
    assert models.own_features(directory) == models.own_features(written)


def check_classes(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [answer["label"] for answer in found] == [answer["label"] for answer in expected]
    assert [answer["score"] for answer in found] == pytest.approx(
        [answer["score"] for answer in expected], rel=1e-4, abs=1e-5
    )


def check_means(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Of a classifier the label and its probability, of a regression the score."""
    as_classes = []
    for answer in found:
        if answer["score"] is None:
            (label,) = answer["labels"]
            assert sum(answer["probabilities"].values()) == pytest.approx(1.0)
            as_classes.append({"label": label, "score": answer["probabilities"][label]})
        else:
            assert (answer["labels"], answer["probabilities"]) == ([], {})
            as_classes.append({"label": "score", "score": answer["score"]})
    check_classes(as_classes, expected)


def check_labels(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for answer, one in zip(found, expected, strict=True):
        assert answer["labels"] == one["labels"]
        assert answer["probabilities"] == pytest.approx(one["probabilities"], rel=1e-4, abs=1e-5)


def check_answers(found: list[dict[str, Any]], expected: list[str]) -> None:
    assert [answer["answer"] for answer in found] == expected
    for answer, question in zip(found, models.QUESTIONS, strict=True):
        assert question["context"][answer["start"] : answer["end"]] == answer["answer"]


Check = Callable[[list[dict[str, Any]], Any], None]


@pytest.mark.parametrize(
    ("key", "body", "check"),
    [
        ("cased-pair", {"dataframe_records": models.PAIRS}, check_classes),
        ("cased-squad", {"inputs": models.QUESTIONS}, check_answers),
        ("cased-means", {"inputs": models.PAIRS}, check_means),
        ("cased-means-regression", {"inputs": models.PAIRS}, check_means),
        ("cased-table", {"inputs": models.SENTENCES}, check_classes),
        ("cased-multi", {"inputs": models.PAIRS}, check_labels),
    ],
)
def test_a_server_answers_as_training_does(
    registry: Registry, consumer: Path, tmp_path: Path, key: str, body: dict[str, Any], check: Check
) -> None:
    with served(registry, consumer, f"trial-{key}", tmp_path) as address:
        request = urllib.request.Request(
            f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            predictions = json.load(response)["predictions"]
    check(predictions, registry.written[key].expected)


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
