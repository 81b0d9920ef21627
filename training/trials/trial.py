"""One run of fine-tuning, of a recipe or a sweep, and the state of its directory; without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from pipelines.contract import storage
from pipelines.contract.manifest import StageKey, read_manifest, write_manifest
from pipelines.contract.recipe import RunConfig
from pipelines.contract.workspace import MODEL_DIRECTORY
from pipelines.statistics.training import TrialStatistics
from training.settings.finetuning import FinetuningConfig
from training.settings.model import ModelConfig
from training.settings.sweep import Cell

_MODEL_PREFIX = f"{MODEL_DIRECTORY}/"


@dataclass(frozen=True)
class Trial:
    """Description of one run of fine-tuning.

    start: name of the initial weights. directory: of the result. config: the section [finetuning] with this trial's
    settings. encoder_directory: a Hugging Face directory; None starts from random weights of `model`.
    vocabulary_directory: source of the tokenizer. model: None if the encoder's own configuration determines it. run:
    the section [run], which names the place for copies of remote files.
    """

    task: str
    start: str
    directory: str
    config: FinetuningConfig
    key: StageKey
    encoder_directory: str | None
    vocabulary_directory: str
    model: ModelConfig | None = None
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def name(self) -> str:
        return os.path.basename(self.directory)

    @property
    def label(self) -> str:
        """Name in log lines and of the MLflow run."""
        return f"{self.task}/{self.name}"

    @property
    def cell(self) -> Cell:
        """Its point of a sweep's grid."""
        fitting = self.config.fitting(self.task)
        return Cell(fitting.batch_size, fitting.learning_rate, fitting.num_train_epochs)

    @property
    def seed(self) -> int:
        return self.config.fitting(self.task).seed

    def say(self, line: str) -> None:
        print(f"finetuning: {self.label}: {line}", flush=True)

    def difference(self) -> str | None:
        """Why it must be trained, in words; None if it is complete."""
        return self.key.difference(self.directory)

    def statistics(self) -> TrialStatistics:
        """Statistics of its manifest; it must be complete."""
        manifest = read_manifest(self.directory)
        assert manifest is not None, self.directory
        return manifest.statistics_as(TrialStatistics)

    def has_model(self) -> bool:
        """Whether its manifest lists weights."""
        manifest = read_manifest(self.directory)
        return manifest is not None and any(file.name.startswith(_MODEL_PREFIX) for file in manifest.files)

    def drop_model(self) -> None:
        """Delete the weights of a complete trial and remove them from its manifest; scores and predictions stay."""
        manifest = read_manifest(self.directory)
        assert manifest is not None, self.directory
        kept = tuple(file for file in manifest.files if not file.name.startswith(_MODEL_PREFIX))
        if len(kept) < len(manifest.files):
            # Manifest first: if interrupted, it must not list missing files.
            write_manifest(self.directory, manifest.model_copy(update={"files": kept}))
        storage.remove_directory(storage.join(self.directory, MODEL_DIRECTORY))
