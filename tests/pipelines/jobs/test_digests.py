"""Equal recipe, equal bytes: the digests of a small corpus' stages, the same on every supported Python.

If one of these changes on purpose, the stage's version in `pipelines/stage_keys.py` goes up in the same commit.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.contract.manifest import read_manifest

DIGESTS = {
    "documents": "45d7e5518fa138c06c81d5ef99592f4ad22f8be6eb8509bfe9d597787313b3dc",
    "vocabulary": "18a0703ed9f0331340a2f948edce8ebfcb8015ad98557c9709274cd28a02b40c",
    "examples": "6e6007ca6e847da7efa9479a2883566844bdd5684ca42db5b53d4d5c6d2e755f",
}


@pytest.mark.parametrize("stage", DIGESTS)
def test_a_small_corpus_gives_the_bytes_it_always_gave(built: tuple[Path, str], stage: str) -> None:
    workspace, _ = built
    manifest = read_manifest(str(workspace / stage))
    assert manifest is not None
    assert manifest.digest == DIGESTS[stage]
