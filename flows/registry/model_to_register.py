"""Models of a stage to be registered: files, the manifest that proves them complete, score and card."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flows.console.tables import shown
from flows.parameters.whole_recipe import WholeRecipe
from flows.registry.criteria import Evaluation
from flows.registry.evaluations import dev_files, distilled_evaluation, encoder_evaluation, finetuned_evaluation
from flows.registry.logged_models import ModelFiles
from flows.registry.model_card import CardFacts, card_facts
from flows.running.outcomes import StageOutcome
from pipelines.contract import storage
from pipelines.contract.manifest import Manifest, read_manifest, require_manifest, verify_file
from pipelines.contract.workspace import ENCODER_DIRECTORY, MODEL_DIRECTORY, RANDOM
from pipelines.staging.staged import staged
from pipelines.statistics.training import TrialStatistics


@dataclass(frozen=True)
class ModelToRegister:
    """A model that a stage wrote. evaluation: its score; None if unknown."""

    files: ModelFiles
    manifest: Manifest
    evaluation: Evaluation | None
    card: CardFacts
    data: str = "development data"
    """The data of the evaluation, in words."""


def pretrained_encoder(whole: WholeRecipe, outcome: StageOutcome) -> ModelToRegister:
    """The encoder of a pre-training stage, as a masked-language model.

    Raises:
        InputError: a file is not what the manifest says.
    """
    length = whole.pretraining.phases[-1].max_seq_length
    return _encoder(whole, outcome, "encoder", length, lambda manifest: encoder_evaluation(whole, manifest))


def distilled_encoder(whole: WholeRecipe, outcome: StageOutcome) -> ModelToRegister:
    """The student of a distillation stage, as a masked-language model.

    Raises:
        InputError: a file is not what the manifest says.
    """
    config = whole.distillation

    def evaluation(manifest: Manifest) -> Evaluation | None:
        return distilled_evaluation(whole, manifest, config.eval_examples)

    return _encoder(whole, outcome, "encoder-distilled", config.max_seq_length, evaluation)


def finetuned_models(whole: WholeRecipe, outcome: StageOutcome) -> Iterator[ModelToRegister]:
    """Each task's model, of a sweep the best one's; those from random weights are for comparison only.

    Raises:
        InputError: a file is not what the manifest says.
    """
    for output, directory in outcome.directories.items():
        task, start = output.rsplit("/", 1)
        if start != RANDOM:
            yield _finetuned(whole, task, directory)


def _encoder(
    whole: WholeRecipe,
    outcome: StageOutcome,
    suffix: str,
    length: int,
    evaluation: Callable[[Manifest], Evaluation | None],
) -> ModelToRegister:
    (directory,) = outcome.directories.values()
    manifest, directory = _verified(directory, whole)
    files = ModelFiles(f"{whole.model_prefix}-{suffix}", storage.join(directory, ENCODER_DIRECTORY), {})
    data = f"held-out examples of length {length}"
    return ModelToRegister(files, manifest, evaluation(manifest), card_facts(whole, files, manifest), data)


def _finetuned(whole: WholeRecipe, task: str, directory: str) -> ModelToRegister:
    manifest, directory = _verified(directory, whole)
    files = ModelFiles(
        f"{whole.model_prefix}-{task}",
        storage.join(directory, MODEL_DIRECTORY),
        manifest.config,
        takes_pairs=whole.finetuning.family(task).takes_pairs(whole.finetuning, task),
        null_threshold=manifest.statistics_as(TrialStatistics).null_threshold,
    )
    # With its folder, since each task of GLUE has a dev.tsv.
    names = [shown("/".join(path.split("/")[-2:])) for path in dev_files(whole, task)]
    evaluation = finetuned_evaluation(whole, task, manifest)
    return ModelToRegister(files, manifest, evaluation, card_facts(whole, files, manifest), *names[:1])


def _verified(directory: str, whole: WholeRecipe) -> tuple[Manifest, str]:
    """The manifest of a stage, and the local directory of its verified files: exactly the trained model is registered.

    Files of a remote stage are verified while they are copied.
    """
    manifest = read_manifest(directory)
    stage = manifest.stage if manifest is not None else os.path.basename(directory)
    manifest = require_manifest(directory, stage, "clozeworks run")
    if not storage.is_local(directory):
        return manifest, staged(directory, manifest, whole.run).all()
    for file in manifest.files:
        verify_file(directory, file)
    return manifest, directory
