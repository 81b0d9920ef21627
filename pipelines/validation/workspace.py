"""Check the finished stages of a workspace, or one of them."""

from __future__ import annotations

import os
from collections.abc import Callable

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, verify_file
from pipelines.contract.workspace import DOCUMENTS, EXAMPLES, VOCABULARY
from pipelines.validation.documents import validate_documents
from pipelines.validation.examples import validate_examples
from pipelines.validation.faults import FaultError
from pipelines.validation.manifests import STAGES, check_inputs, check_manifest, check_strays, stated
from pipelines.validation.vocabulary import validate_vocabulary


def validate(directory: str) -> list[str]:
    """Check a stage's directory, or all stages of a workspace; return one line per valid stage.

    If the inputs of a stage are next to it, its statistics are recomputed from them.

    Raises:
        InputError: there is no complete stage here.
        FaultError: a file, a row or a statistic is wrong; the line names the file and, if there is one, the row.
    """
    manifest = stated(directory)
    if manifest is not None:
        return [_validate_stage(directory, manifest)]
    lines = []
    stages = {stage: storage.join(directory, stage) for stage in STAGES}
    manifests = {stage: stated(uri) for stage, uri in stages.items()}
    if not any(manifests.values()):
        if storage.is_local(directory) and not os.path.isdir(storage.local_path(directory)):
            raise InputError(f"{directory}: no such directory; give a workspace or the directory of a stage")
        raise InputError(f"{directory}: neither a complete stage nor a workspace with one")
    for stage, uri in stages.items():
        manifest = manifests[stage]
        if manifest is None:
            raise InputError(f"{uri}: no manifest.json, so this stage is not complete; run clozeworks {stage} first")
        if manifest.stage != stage:
            raise FaultError(f"{uri}: holds the stage {manifest.stage!r}, not {stage!r}")
        lines.append(_validate_stage(uri, manifest))
    return lines


def _validate_stage(directory: str, manifest: Manifest) -> str:
    checks: dict[str, Callable[[str, Manifest], None]] = {
        DOCUMENTS: validate_documents,
        VOCABULARY: validate_vocabulary,
        EXAMPLES: validate_examples,
    }
    if manifest.stage not in checks:
        raise InputError(f"{directory}: holds the stage {manifest.stage!r}; this command checks {', '.join(checks)}")
    check_manifest(directory, manifest)
    # Rows first: for a damaged file, the row at fault says more than the checksum.
    checks[manifest.stage](directory, manifest)
    for file in manifest.files:
        try:
            verify_file(directory, file)
        except InputError as error:
            raise FaultError(str(error)) from error
    check_strays(directory, manifest)
    check_inputs(directory, manifest)
    rows = sum(file.rows for file in manifest.files)
    return f"{directory}: {manifest.stage} in order: {len(manifest.files)} files, {rows} rows"
