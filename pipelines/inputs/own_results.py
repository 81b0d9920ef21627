"""Recognize directories in a corpus that hold results of this project: they are never read as a corpus."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection

from pipelines.contract import storage
from pipelines.contract.workspace import (
    BUILDING_SUFFIX,
    DISTILLATION,
    DOCUMENTS,
    EXAMPLES,
    MANIFEST_NAME,
    PRETRAINING,
    VOCABULARY,
)
from pipelines.results.marks import is_open

_MANIFEST_KEYS = {"schema_version", "stage", "stage_version", "files"}
_STAGES = (DOCUMENTS, VOCABULARY, EXAMPLES, PRETRAINING, DISTILLATION)
# Other entries of a workspace: unfinished and kept stages, tasks, databases and reports.
_OTHER_RESULTS = re.compile(
    rf"(?:{'|'.join(_STAGES)})\.(?:building|\d+)|finetuning|prefect|mlartifacts|mlflow\.db.*|timings\.json"
    r"|report\.(?:json|md|html)"
)


class OwnResults:
    """Recognizes own results among local directories, by the run's workspace and by their manifests."""

    def __init__(self, workspace: str | None):
        self._workspace: str | None = None
        if workspace is not None and storage.is_local(workspace):
            self._workspace = os.path.realpath(storage.local_path(workspace))

    def is_left_out(self, directory: str, names: Collection[str]) -> bool:
        """Whether a directory, given by its path without links and its entries, is a stage or a workspace."""
        return directory == self._workspace or is_stage(directory, names) or _holds_stage(directory, names)

    def names_in_root(self, root: str, names: Collection[str]) -> set[str]:
        """Own results in the directory that an input itself names: it is read even if it is a workspace."""
        if root == self._workspace or _holds_stage(root, names):
            return {name for name in names if _OTHER_RESULTS.fullmatch(name)}
        return set()


def is_stage(directory: str, names: Collection[str]) -> bool:
    """Whether a directory with these entries has a manifest of this project."""
    if MANIFEST_NAME not in names:
        return False
    try:
        with open(os.path.join(directory, MANIFEST_NAME), "rb") as stream:
            value = json.loads(stream.read())
    except (OSError, ValueError, RecursionError):
        # A file of this name that cannot be read or parsed is not one.
        return False
    return isinstance(value, dict) and value.keys() >= _MANIFEST_KEYS


def _holds_stage(directory: str, names: Collection[str]) -> bool:
    return any(
        (stage in names and is_stage(os.path.join(directory, stage), [MANIFEST_NAME]))
        or (f"{stage}{BUILDING_SUFFIX}" in names and is_open(os.path.join(directory, stage)))
        for stage in _STAGES
    )
