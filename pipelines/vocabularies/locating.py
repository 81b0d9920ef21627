"""Find the files of the vocabulary that `vocabulary.from` names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, read_manifest, verify_file
from pipelines.contract.workspace import (
    CONFIG_NAME,
    ENCODER_DIRECTORY,
    PRETRAINING,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    VOCABULARY,
    VOCABULARY_NAME,
)
from pipelines.inputs.registered_models import TOKENIZER_FILES, is_registered, registered_model

ACCEPTED = (
    "give a vocab.txt, a tokenizer.json, a Hugging Face directory, a workspace, or a registered model such as "
    "models:/NAME@champion"
)
_SOURCE_FILES = TOKENIZER_FILES[:2]


class AbsentVocabularyError(InputError):
    """What `vocabulary.from` names cannot be reached: it may be elsewhere, or the server may be down."""


@dataclass(frozen=True)
class VocabularyFiles:
    """The files that decide a tokenizer.

    origin: as in the recipe. contents: bytes by name. is_own: a stage of this project wrote them. casing_next_to: a
    file next to a named vocab.txt that states a casing, which the user did not name.
    """

    origin: str
    contents: Mapping[str, bytes]
    is_own: bool = False
    casing_next_to: str | None = None

    def has(self, name: str) -> bool:
        return name in self.contents

    def text(self, name: str) -> str:
        """The contents of a file.

        Raises:
            InputError: it is not UTF-8.
        """
        try:
            return self.contents[name].decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.origin}: {name} is not UTF-8 ({error}); {ACCEPTED}") from error

    def table(self, name: str) -> dict[str, Any]:
        """The contents of a JSON file; empty without the file.

        Raises:
            InputError: it does not hold a JSON object.
        """
        if not self.has(name):
            return {}
        try:
            found = json.loads(self.text(name))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.origin}: {name} is not JSON ({error}); restore the file") from error
        if not isinstance(found, dict):
            raise InputError(f"{self.origin}: {name} is not a JSON object; restore the file")
        return found


def find_vocabulary(origin: str) -> VocabularyFiles:
    """Read the files of a vocabulary.

    Args:
        origin: a vocab.txt or tokenizer.json, the directory of one, a workspace (its vocabulary or, without one, its
            encoder), or `models:/...` or `runs:/...`.

    Raises:
        AbsentVocabularyError: there is nothing, or MLflow does not deliver it.
        InputError: it is nothing that holds a vocabulary, or a file of this project is damaged.
    """
    if is_registered(origin):
        try:
            return _in_directory(registered_model(origin, ACCEPTED), origin)
        except InputError as error:
            raise AbsentVocabularyError(f"vocabulary.from = {error}") from error
    if storage.file_size_bytes(origin) is not None:
        return _from_file(origin)
    for directory in (origin, *_of_workspace(origin)):
        if _present(directory, _SOURCE_FILES):
            return _in_directory(directory, origin)
    if not storage.list_files(origin):
        raise AbsentVocabularyError(f"vocabulary.from = {origin}: no such file or directory; {ACCEPTED}")
    raise InputError(
        f"vocabulary.from = {origin}: holds neither {' nor '.join(_SOURCE_FILES)}, and is not a workspace with a "
        f"complete vocabulary or encoder; {ACCEPTED}"
    )


def _from_file(path: str) -> VocabularyFiles:
    directory = path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
    if path.endswith(".json"):
        if path.endswith(f"/{TOKENIZER_NAME}") and _present(directory, (TOKENIZER_CONFIG_NAME,)):
            return _in_directory(directory, path)
        return VocabularyFiles(path, {TOKENIZER_NAME: storage.read_bytes(path)})
    if path.endswith(".txt"):
        stating = _present(directory, (TOKENIZER_CONFIG_NAME, TOKENIZER_NAME))
        return VocabularyFiles(
            path, {VOCABULARY_NAME: storage.read_bytes(path)}, casing_next_to=stating[0] if stating else None
        )
    raise InputError(f"vocabulary.from = {path}: neither a .txt nor a .json file; {ACCEPTED}")


def _of_workspace(workspace: str) -> list[str]:
    """The vocabulary and the encoder of a workspace, as far as they are complete.

    Raises:
        InputError: it has both, with different entries.
    """
    places = ((VOCABULARY, ""), (PRETRAINING, f"/{ENCODER_DIRECTORY}"))
    found = [
        f"{storage.join(workspace, stage)}{inside}"
        for stage, inside in places
        if read_manifest(storage.join(workspace, stage)) is not None
    ]
    hashes = {
        storage.sha256_of(storage.join(one, VOCABULARY_NAME)) for one in found if _present(one, (VOCABULARY_NAME,))
    }
    if len(hashes) > 1:
        raise InputError(
            f"vocabulary.from = {workspace}: its vocabulary and its encoder have different entries; name one of "
            f"{' and '.join(found)}"
        )
    return found


def _in_directory(directory: str, origin: str) -> VocabularyFiles:
    manifest, stage, prefix = _stage_of(directory)
    for file in manifest.files if manifest else ():
        if file.name.removeprefix(prefix) in TOKENIZER_FILES and file.name.startswith(prefix):
            verify_file(stage, file)
    names = _present(directory, (*TOKENIZER_FILES, CONFIG_NAME))
    contents = {name: storage.read_bytes(storage.join(directory, name)) for name in names}
    return VocabularyFiles(origin, contents, manifest is not None)


def _stage_of(directory: str) -> tuple[Manifest | None, str, str]:
    """The manifest that lists a directory's vocabulary, where it is, and the prefix of the directory's files in it."""
    parent, _, name = directory.rstrip("/").rpartition("/")
    for stage, prefix in ((directory, ""), (parent or ".", f"{name}/")):
        try:
            manifest = read_manifest(stage)
        except InputError:
            continue  # not our manifest: the vocabulary is from elsewhere
        if manifest is not None and any(file.name == f"{prefix}{VOCABULARY_NAME}" for file in manifest.files):
            return manifest, stage, prefix
    return None, "", ""


def _present(directory: str, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if storage.file_size_bytes(storage.join(directory, name)) is not None]
