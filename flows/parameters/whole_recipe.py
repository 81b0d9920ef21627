"""Check every section of a recipe at once, before the first stage starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from flows import TRACKING_SERVER
from flows.parameters.contradictions import Sections, contradiction
from flows.parameters.tracking_config import TrackingConfig
from pipelines.contract import storage
from pipelines.contract.recipe import Recipe, RunConfig, Section
from pipelines.contract.recipe_text import RecipeError
from pipelines.contract.workspace import DOCUMENTS
from pipelines.settings.documents import DocumentsConfig
from pipelines.settings.examples import ExamplesConfig
from pipelines.settings.mixtures import mixture_problem, with_weights
from pipelines.settings.preprocessing import PreprocessingConfig
from pipelines.settings.vocabulary import VocabularyConfig
from training.settings.distillation import DistillationConfig
from training.settings.finetuning import FinetuningConfig
from training.settings.model import ModelConfig
from training.settings.pretraining import PretrainingConfig
from training.stages.initial_encoder import model_at_hand


@dataclass(frozen=True)
class WholeRecipe:
    """All sections of one recipe, valid and consistent with one another.

    Its fields are the one table of sections: their names in the file, and the models that check them. `model` is that
    of the initial encoder of pre-training, if there is one on this machine.
    """

    recipe: Recipe
    run: RunConfig
    preprocessing: PreprocessingConfig
    documents: DocumentsConfig
    vocabulary: VocabularyConfig
    examples: ExamplesConfig
    model: ModelConfig
    pretraining: PretrainingConfig
    distillation: DistillationConfig
    finetuning: FinetuningConfig
    tracking: TrackingConfig

    @classmethod
    def check(cls, recipe: Recipe, needs_corpus: bool = True) -> WholeRecipe:
        """Check each section, then all of them against one another.

        Args:
            recipe: the parsed file.
            needs_corpus: False for a flow that reads none, such as fine-tuning; [documents] may then be absent.

        Raises:
            RecipeError: the first error, in one line.
        """
        left_out = {DOCUMENTS} if not needs_corpus and DOCUMENTS not in recipe.tables else set()
        sections: dict[str, Any] = {
            name: recipe.section(name, model) if name not in left_out else model.model_construct(sources=())
            for name, model in SECTION_MODELS.items()
        }
        if problem := mixture_problem(sections["examples"], sections["documents"]):
            raise RecipeError(f"{recipe.path}: {problem}")
        sections["examples"] = with_weights(sections["examples"], sections["documents"])
        whole = cls(recipe, **sections)
        whole._check_workspace()
        model = model_at_hand(whole.model, whole.pretraining.initial_encoder, recipe.path)
        # Without a corpus and a model of its own, the recipe fine-tunes an encoder that decides the architecture.
        own = model if not left_out or "model" in recipe.tables else None
        if problem := contradiction(whole._sections_to_compare(own, has_corpus=not left_out)):
            raise RecipeError(f"{recipe.path}: {problem}")
        return whole if model is None else replace(whole, model=model)

    @property
    def is_local(self) -> bool:
        """Is the workspace on a local disk?"""
        return storage.is_local(self.run.workspace)

    @property
    def tracking_server(self) -> str | None:
        """MLflow's server; None if SQLite in the workspace is used instead."""
        return self.tracking.mlflow_tracking_uri or TRACKING_SERVER

    @property
    def model_prefix(self) -> str:
        return self.tracking.registered_model_prefix or self.run.name

    def sections(self) -> dict[str, Section]:
        """Every section by its name in the file."""
        return {name: getattr(self, name) for name in SECTION_MODELS}

    def _sections_to_compare(self, model: ModelConfig | None, has_corpus: bool) -> Sections:
        distillation = self.distillation if "distillation" in self.recipe.tables else None
        return Sections(
            self.documents,
            self.examples,
            model,
            self.pretraining,
            distillation,
            self.finetuning,
            self.tracking,
            has_corpus,
        )

    def _check_workspace(self) -> None:
        if self.tracking_server is None and not self.is_local:
            raise RecipeError(
                f"{self.recipe.path}: run.workspace = {self.run.workspace} is not local, so it cannot contain "
                "MLflow's SQLite database; set tracking.mlflow_tracking_uri to a tracking server"
            )


SECTION_MODELS: dict[str, type[Section]] = {
    name: model for name, model in get_type_hints(WholeRecipe).items() if issubclass(model, Section)
}
"""The model of every section by its name in the file."""
