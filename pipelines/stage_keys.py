"""What decides the output of each preprocessing stage; no Beam here, so asking costs milliseconds."""

from __future__ import annotations

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, digest_of, read_manifest
from pipelines.contract.workspace import BROUGHT_INPUT, CORPUS_INPUT, DOCUMENTS, EXAMPLES, VOCABULARY
from pipelines.filtering.evaluation_texts import evaluation_files_of
from pipelines.settings.documents import DocumentsConfig
from pipelines.settings.examples import ExamplesConfig
from pipelines.settings.vocabulary import VocabularyAdoption, VocabularyConfig
from pipelines.sources.formats import find_inputs
from pipelines.vocabularies.locating import AbsentVocabularyError
from pipelines.vocabularies.reading import read_vocabulary

# To be raised whenever the same settings and inputs would give other bytes than before.
DOCUMENTS_VERSION = 3
VOCABULARY_VERSION = 1
EXAMPLES_VERSION = 2


def documents_key(config: DocumentsConfig, workspace: str) -> StageKey:
    """Key of the documents stage: settings, the names, sizes and times of the files to be read, and evaluation data.

    Where the corpus is not here but its documents are, the key is that of the complete stage: nothing needs the texts.

    Raises:
        InputError: an input names no file.
    """
    try:
        found = find_inputs(config, workspace)
        evaluation_files = evaluation_files_of(config)
    except InputError:
        directory = storage.join(workspace, DOCUMENTS)
        manifest = read_manifest(directory)
        if manifest is None:
            raise
        key = StageKey(DOCUMENTS, DOCUMENTS_VERSION, config, manifest.inputs)
        if key.difference(directory) is not None:
            raise
        return key
    files = [[[file.name, file.size_bytes, file.modified_ns] for file in of_source] for of_source in found]
    digest = digest_of(files)
    if evaluation_files:
        contents = [[file.name, storage.sha256_of(file.uri)] for file in evaluation_files]
        digest = digest_of({"corpus": digest, "evaluation": contents})
    return StageKey(DOCUMENTS, DOCUMENTS_VERSION, config, {CORPUS_INPUT: digest})


def vocabulary_key(config: VocabularyConfig, workspace: str) -> StageKey:
    """Key of the vocabulary stage: settings and the documents' digest (empty while there are none).

    That of a vocabulary that is brought has the digest of what was found instead of its place and casing.

    Raises:
        InputError: as `read_vocabulary`.
    """
    inputs = _digests(workspace, DOCUMENTS)
    if config.origin is None:
        return StageKey(VOCABULARY, VOCABULARY_VERSION, config, inputs)
    adoption = VocabularyAdoption(extend=config.extend)
    digest = _brought_digest(config, storage.join(workspace, VOCABULARY))
    return StageKey(VOCABULARY, VOCABULARY_VERSION, adoption, {**inputs, BROUGHT_INPUT: digest})


def _brought_digest(config: VocabularyConfig, directory: str) -> str:
    """Digest of the vocabulary that is brought; where it cannot be reached, of that which the stage adopted from it."""
    try:
        return read_vocabulary(config).digest
    except AbsentVocabularyError:
        manifest = read_manifest(directory)
        if manifest is None or manifest.statistics.get("origin") != config.origin:
            raise
        return manifest.inputs[BROUGHT_INPUT]


def examples_key(config: ExamplesConfig, workspace: str) -> StageKey:
    """Key of the examples stage: settings and the digests of documents and vocabulary."""
    return StageKey(EXAMPLES, EXAMPLES_VERSION, config, _digests(workspace, DOCUMENTS, VOCABULARY))


def _digests(workspace: str, *stages: str) -> dict[str, str]:
    manifests = {stage: read_manifest(storage.join(workspace, stage)) for stage in stages}
    return {stage: manifest.digest if manifest else "" for stage, manifest in manifests.items()}
