"""The jar of a job for `spark-submit`: the pipeline and its options as resources, read by Beam's main class."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import zipfile

from apache_beam.portability.api import beam_runner_api_pb2
from google.protobuf import json_format, struct_pb2

from pipelines.contract.errors import InputError, writing

# As in Beam's PortablePipelineJarUtils.java.
_FOLDER, _NAME = "BEAM-PIPELINE", "pipeline"

_KEPT_JARS = 32
"""A jar is some ten kilobytes, and its digest names the workspace, so those of other runs accumulate."""
# A fixed time in the archive, so that equal contents give equal bytes.
_TIME = (1980, 1, 1, 0, 0, 0)


def job_jar(
    directory: str, class_path: str, pipeline: beam_runner_api_pb2.Pipeline, options: struct_pb2.Struct
) -> tuple[str, bool]:
    """Build the jar, or find the one of an equal job in the cache.

    Args:
        directory: the cache; created if it is absent.
        class_path: name of the directory of Beam's jars, which is made of the scope, the version and the digest of the
            pom.
        pipeline: the graph. It has this project's code by name, and a worker has that code installed.
        options: Beam's, by their URNs.

    Returns:
        The path, and whether it was in the cache.

    Raises:
        InputError: the job brings packages, which a worker process does not install.
    """
    for environment in pipeline.components.environments.values():
        if environment.dependencies:
            raise InputError(
                "the job brings packages, but workers on Spark install nothing; install them on every node and omit "
                "setup_file, requirements_file and extra_packages"
            )
    texts = {
        f"{_FOLDER}/{_NAME}/pipeline.json": _json_of(pipeline),
        f"{_FOLDER}/{_NAME}/pipeline-options.json": _json_of(options),
        f"{_FOLDER}/pipeline-manifest.json": json.dumps({"defaultJobName": _NAME}),
    }
    digest = hashlib.sha256(json.dumps([class_path, texts], sort_keys=True).encode()).hexdigest()
    path = os.path.join(directory, f"{digest[:32]}.jar")
    if os.path.exists(path):
        os.utime(path)
        return path, True
    os.makedirs(directory, exist_ok=True)
    building = f"{path}.{os.getpid()}.tmp"
    with writing(path), zipfile.ZipFile(building, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(name, _TIME), text, zipfile.ZIP_DEFLATED)
    os.replace(building, path)
    _forget_old(directory)
    return path, False


def _json_of(message: beam_runner_api_pb2.Pipeline | struct_pb2.Struct) -> str:
    return json.dumps(json_format.MessageToDict(message), sort_keys=True)


def _forget_old(directory: str) -> None:
    jars = sorted(glob.glob(os.path.join(glob.escape(directory), "*.jar")), key=os.path.getmtime)
    for path in jars[:-_KEPT_JARS]:
        os.unlink(path)
