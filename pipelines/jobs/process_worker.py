"""A worker process for runners that start their workers themselves: Beam's `--environment_type=PROCESS`.

    --environment_config='{"command": "/opt/clozeworks/bin/clozeworks-worker"}'

Beam's image contains a program for this; a node without containers has only this package. The runner starts it with
`--id` and `--provision_endpoint`, which provides the job's options and the other endpoints.
"""

from __future__ import annotations

import argparse
import os
import sys

import grpc
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc, beam_runner_api_pb2
from apache_beam.runners.worker import sdk_worker_main
from apache_beam.runners.worker.worker_id_interceptor import WorkerIdInterceptor
from google.protobuf import json_format, text_format

from pipelines.commands.lifeline import follow_lifeline

_TIMEOUT_SECONDS = 60.0
# Beam stages a list of the submitter's packages for its own messages.
_PACKAGE_LIST = "submission_environment_dependencies.txt"


def main() -> None:
    follow_lifeline()
    parser = argparse.ArgumentParser(
        prog="clozeworks-worker",
        description=__doc__,
        epilog="example: clozeworks-worker --id 1-1 --provision_endpoint localhost:8097",
    )
    parser.add_argument("--id", required=True, help="the name that the runner gives this worker")
    parser.add_argument("--provision_endpoint", required=True, help="host:port that provides the job's options")
    arguments, _ = parser.parse_known_args()
    os.environ.update(harness_environment(arguments.id, provision_info(arguments.id, arguments.provision_endpoint)))
    sdk_worker_main.main(sys.argv)


def provision_info(worker_id: str, endpoint: str) -> beam_provision_api_pb2.ProvisionInfo:
    """Fetch the worker's configuration from the runner."""
    with grpc.insecure_channel(endpoint) as plain:
        channel = grpc.intercept_channel(plain, WorkerIdInterceptor(worker_id))
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        return stub.GetProvisionInfo(request, timeout=_TIMEOUT_SECONDS, wait_for_ready=True).info


def harness_environment(worker_id: str, info: beam_provision_api_pb2.ProvisionInfo) -> dict[str, str]:
    """The environment variables that Beam's worker reads.

    Raises:
        RuntimeError: the job brings its own packages, which only a container installs.
    """
    staged = sorted({_staged_name(artifact) for artifact in info.dependencies} - {_PACKAGE_LIST})
    if staged:
        raise RuntimeError(
            f"the job brings {', '.join(staged)}, but a worker process installs nothing; install it on every node and "
            "omit --setup_file, --requirements_file and --extra_package"
        )
    return {
        "WORKER_ID": worker_id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.control_endpoint),
        "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.logging_endpoint),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }


def _staged_name(artifact: beam_runner_api_pb2.ArtifactInformation) -> str:
    payload = beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(artifact.role_payload)
    return str(payload.staged_name)


if __name__ == "__main__":
    main()
