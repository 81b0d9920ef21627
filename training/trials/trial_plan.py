"""Which trials a recipe asks for, and what each reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.contract import storage
from pipelines.contract.manifest import StageKey, require_manifest
from pipelines.contract.workspace import (
    DATA_DIRECTORY,
    DOCUMENTS,
    ENCODER_DIRECTORY,
    FINETUNING,
    MODEL_DIRECTORY,
    PRETRAINED,
    PRETRAINING,
    RANDOM,
    VOCABULARY,
    code_version,
    vocabulary_size,
)
from pipelines.results.verification import require_stage
from training.settings.glue import BEGIN_FROM_MNLI, MNLI, WORD_ORDER
from training.stages.finetuning import finetuning_directory, finetuning_key
from training.stages.sections import FinetuningSections

if TYPE_CHECKING:
    from training.trials.trial import Trial


@dataclass(frozen=True)
class PlannedTrial:
    sections: FinetuningSections
    task: str
    start: str
    restart: bool = False

    @property
    def directory(self) -> str:
        return finetuning_directory(self.sections.workspace, self.task, self.start)

    @property
    def key(self) -> StageKey:
        """Asked for when the trial's turn comes: it may begin from what an earlier trial writes."""
        return finetuning_key(self.sections, self.task, self.start)

    def difference(self) -> str | None:
        return self.key.difference(self.directory) or ("--restart" if self.restart else None)


def planned_trials(sections: FinetuningSections, restart: bool) -> list[PlannedTrial]:
    """All trials of the recipe, MNLI's first where others begin from it."""
    config = sections.finetuning
    tasks = sorted(config.tasks, key=lambda task: task != MNLI) if config.mnli_first else config.tasks
    starts = (PRETRAINED, RANDOM) if config.compare_with_random else (PRETRAINED,)
    return [PlannedTrial(sections, task, start, restart) for task in tasks for start in starts]


def require_inputs(sections: FinetuningSections) -> None:
    """Check that the stages which fine-tuning reads are complete, and that their files are what the manifests state.

    Raises:
        InputError: one is missing, and the message names its command; or a file is damaged.
    """
    recipe, workspace, config = sections.recipe, sections.workspace, sections.finetuning
    if config.encoder is None or config.compare_with_random:
        require_stage(workspace, VOCABULARY, f"clozeworks vocabulary {recipe.path}")
    if config.encoder is None:
        require_stage(workspace, PRETRAINING, f"deepspeed --module training.pretrain {recipe.path}")
    if WORD_ORDER in config.tasks:
        require_stage(
            workspace,
            DOCUMENTS,
            f"clozeworks documents {recipe.path}",
            lambda file: file.name.startswith("heldout-"),
        )


def data_directory(sections: FinetuningSections, task: str) -> str | None:
    """The folder that a task's own folder lies in; the word-order task's is made here where it is not there yet."""
    if task != WORD_ORDER:
        return sections.finetuning.glue_dir
    from training.glue.word_order import prepare_word_order

    workspace = sections.workspace
    documents = storage.join(workspace, DOCUMENTS)
    manifest = require_manifest(documents, DOCUMENTS, f"clozeworks documents {sections.recipe.path}")
    target = storage.join(workspace, FINETUNING, DATA_DIRECTORY)
    prepare_word_order(target, documents, manifest, sections.finetuning.word_order, code_version())
    return target


def trial_of(sections: FinetuningSections, task: str, start: str, directory: str, key: StageKey) -> Trial:
    """Find the weights and the vocabulary that a trial begins from.

    Raises:
        InputError: the encoder cannot be read.
    """
    from training.trials.trial import Trial, architecture_of

    workspace, config = sections.workspace, sections.finetuning
    if start == RANDOM:
        vocabulary = storage.join(workspace, VOCABULARY)
        return Trial(task, start, directory, key, sections.model, vocabulary_size(vocabulary), None, vocabulary)
    if config.mnli_first and task in BEGIN_FROM_MNLI:
        source = storage.join(finetuning_directory(workspace, MNLI, PRETRAINED), MODEL_DIRECTORY)
    elif config.encoder is not None:
        from training.stages.encoders import encoder_directory

        source = encoder_directory(config.encoder)
    else:
        source = storage.join(workspace, PRETRAINING, ENCODER_DIRECTORY)
    return Trial(task, start, directory, key, *architecture_of(source), source, source)
