"""The three jobs' graphs as Dataflow would get them, as far as possible without an account.

Beam's Dataflow runner is run up to the point of submission (`--dry_run`), and then its own code describes the workers.
The graph must survive serialisation, hold this project's code by name only, and request the image and the machines
that the options name.
"""

from __future__ import annotations

import base64
import bz2
import io
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import run_template
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from google.protobuf import json_format
from tests.support.preprocessing.small_run import JOBS

from pipelines.contract.workspace import DOCUMENTS, EXAMPLES, VOCABULARY

apiclient = pytest.importorskip(
    "apache_beam.runners.dataflow.internal.apiclient", reason="the extra `dataflow` is not installed"
)
from google.cloud import dataflow  # noqa: E402, imported where the extra is there

STAGES = (DOCUMENTS, VOCABULARY, EXAMPLES)
IMAGE = "europe-west4-docker.pkg.dev/example/clozeworks/worker:1"
LAUNCHER = [
    "--runner=DataflowRunner",
    "--project=example",
    "--region=europe-west4",
    "--staging_location=gs://example/staging",
    "--temp_location=gs://example/temp",
    f"--sdk_container_image={IMAGE}",
    "--experiments=use_runner_v2",
    # It would list all packages here, which takes seconds.
    "--experiments=disable_logging_submission_environment",
    "--machine_type=n2-standard-8",
    "--num_workers=3",
    "--max_num_workers=12",
    "--disk_size_gb=50",
    "--no_use_public_ips",
    "--service_account_email=worker@example.iam.gserviceaccount.com",
    "--labels=team=texts",
    "--dry_run=True",
]
"""The options of a job that the template's launcher starts."""
SECTION = f"""
[preprocessing]
runner = "dataflow"
image = "{IMAGE}"
[preprocessing.options]
project = "example"
region = "europe-west4"
staging_location = "gs://example/staging"
temp_location = "gs://example/temp"
experiments = ["use_runner_v2", "disable_logging_submission_environment"]
machine_type = "n2-standard-8"
num_workers = 3
max_num_workers = 12
disk_size_gb = 50
use_public_ips = false
service_account_email = "worker@example.iam.gserviceaccount.com"
labels = ["team=texts"]
dry_run = true
"""
"""The same in a recipe, which a flow and the single commands submit."""


@pytest.fixture(
    scope="module",
    params=[(job, way) for job in JOBS for way in ("recipe", "launcher")],
    ids=lambda param: f"{param[0].__name__.split('.')[-1]}-{param[1]}",
)
def job(request: pytest.FixtureRequest, built: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Beam's description of one of the jobs, made by the job's own `run`."""
    described: list[Any] = []
    construct = apiclient.Job.__init__

    def construct_and_keep(self: Any, *arguments: Any) -> None:
        construct(self, *arguments)
        described.append(self)

    main, way = request.param
    finished, small = built
    workspace = tmp_path_factory.mktemp("dataflow")
    for stage in STAGES[: JOBS.index(main)]:
        (workspace / stage).symlink_to(finished / stage)
    recipe = workspace / "recipe.toml"
    recipe.write_text(Path(small).read_text() + (SECTION if way == "recipe" else ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apiclient.Job, "__init__", construct_and_keep)
        main.run([str(recipe), "--workspace", str(workspace), *(LAUNCHER if way == "launcher" else [])])
    assert len(described) == 1
    return described[0]


def test_the_graph_survives_serialisation(job: Any) -> None:
    graph = job.proto_pipeline
    again = beam_runner_api_pb2.Pipeline.FromString(graph.SerializeToString())
    assert again == graph
    assert json_format.ParseDict(json_format.MessageToDict(graph), beam_runner_api_pb2.Pipeline()) == graph
    names = {transform.unique_name for transform in graph.components.transforms.values()}
    assert names & {"Complete", "TrainVocabulary"}, names


def test_our_code_goes_by_name_and_nothing_by_the_main_module(job: Any) -> None:
    modules = {module for payload in pickles_of(job.proto_pipeline) for module in modules_of(payload)}
    assert "__main__" not in modules
    ours = {module for module in modules if module.split(".")[0] in ("pipelines", "tests")}
    assert ours, modules
    assert all(module.startswith("pipelines.") for module in ours), ours


def test_every_step_runs_in_the_image(job: Any) -> None:
    components = job.proto_pipeline.components
    used = {transform.environment_id for transform in components.transforms.values()} - {""}
    assert used
    for name in used:
        environment = components.environments[name]
        assert environment.urn == common_urns.environments.DOCKER.urn
        assert beam_runner_api_pb2.DockerPayload.FromString(environment.payload).container_image == IMAGE


def test_the_workers_are_those_that_the_options_ask_for(job: Any) -> None:
    environment = apiclient.Environment(
        packages=[],
        options=job.options,
        environment_version="1",
        proto_pipeline_staged_url="gs://example/staging/pipeline.pb",
        proto_pipeline=job.proto_pipeline,
    ).proto
    job.proto.environment = environment
    again = dataflow.Job.deserialize(dataflow.Job.serialize(job.proto))
    (pool,) = again.environment.worker_pools
    assert (pool.machine_type, pool.disk_size_gb) == ("n2-standard-8", 50)
    assert (pool.num_workers, pool.autoscaling_settings.max_num_workers) == (3, 12)
    assert dict(again.labels) == {"team": "texts"}
    assert pool.ip_configuration == dataflow.WorkerIPAddressConfiguration.WORKER_IP_PRIVATE
    assert [image.container_image for image in pool.sdk_harness_container_images] == [IMAGE]
    assert again.environment.service_account_email == "worker@example.iam.gserviceaccount.com"
    assert again.environment.temp_storage_prefix.startswith("storage.googleapis.com/example/temp/")
    assert {"use_runner_v2", "disable_logging_submission_environment"} <= set(again.environment.experiments)
    kept = json_format.MessageToDict(again.environment._pb.sdk_pipeline_options)["options"]
    assert kept["pipelineUrl"] == "gs://example/staging/pipeline.pb"
    assert kept["sdk_container_image"] == IMAGE
    assert json.loads(dataflow.Job.to_json(again))["name"] == job.google_cloud_options.job_name


def test_a_job_of_a_recipe_is_named_after_its_run_and_stage(job: Any, request: pytest.FixtureRequest) -> None:
    name = job.google_cloud_options.job_name
    is_recipes = "-recipe]" in request.node.name
    assert (
        re.fullmatch(r"clozeworks-small-(documents|vocabulary|examples)-[0-9a-f]{12}", name) is not None
    ) is is_recipes


def test_the_template_takes_the_parameters_that_its_metadata_names(
    built: tuple[Path, str], repository: Path, tmp_path: Path
) -> None:
    values = {
        "job": "shard_corpus",
        "recipe": "gs://bucket/recipe.toml",
        "workspace": "gs://bucket/runs/one",
        "settings": "documents.num_shards=3;run.name=trial",
    }
    metadata = json.loads((repository / "infra" / "dataflow" / "flex_template_metadata.json").read_text())
    for parameter in metadata["parameters"]:
        assert any(re.search(regex, values[parameter["name"]]) for regex in parameter["regexes"]), parameter
    assert [parameter["name"] for parameter in metadata["parameters"]] == list(values)
    values |= {"recipe": built[1], "workspace": str(tmp_path)}
    run_template.main([*(f"--{name}={value}" for name, value in values.items())])
    assert len(list((tmp_path / "documents").glob("train-*-of-00003.arrow"))) == 3


def pickles_of(graph: beam_runner_api_pb2.Pipeline) -> Iterator[bytes]:
    """The pickled functions of a graph's ParDo steps and combiners."""
    for transform in graph.components.transforms.values():
        payload = b""
        if transform.spec.urn == common_urns.primitives.PAR_DO.urn:
            payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload).do_fn.payload
        elif transform.spec.urn.startswith("beam:transform:combine"):
            payload = beam_runner_api_pb2.CombinePayload.FromString(transform.spec.payload).combine_fn.payload
        if payload.startswith(base64.b64encode(b"BZh")):
            yield bz2.decompress(base64.b64decode(payload))


class ModuleRecorder(pickle.Unpickler):
    """Reads a pickle and records the names of the modules that it refers to."""

    def __init__(self, payload: bytes):
        super().__init__(io.BytesIO(payload))
        self.modules: set[str] = set()

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        self.modules.add(module_name)
        return super().find_class(module_name, global_name)


def modules_of(payload: bytes) -> set[str]:
    recorder = ModuleRecorder(payload)
    recorder.load()
    return recorder.modules
