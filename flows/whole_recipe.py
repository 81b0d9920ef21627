"""Check every section of a recipe at once, before the first stage starts."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from pipelines import storage
from pipelines.config import DocumentsConfig, ExamplesConfig, VocabularyConfig
from pipelines.recipe import Recipe, RecipeError, RunConfig, Section, read_recipe
from training.config import FinetuningConfig, ModelConfig, PretrainingConfig, require_lengths_fit

REGISTRY_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class TrackingConfig(Section):
    """`[tracking]`: where MLflow keeps runs and models, and how it names them."""

    mlflow_tracking_uri: str | None = None
    """None means SQLite in the workspace (`mlflow.db`), artifacts beside it (`mlartifacts/`)."""
    experiment: str = Field("clozeworks", min_length=1)
    registered_model_prefix: str | None = Field(None, pattern=REGISTRY_NAME_PATTERN)
    """Models are registered as `<prefix>-encoder` and `<prefix>-<task>`; None means the name of the run."""
    alias: str = Field("champion", pattern=r"^[a-z][a-z0-9_-]*$")
    """Alias that is moved to the version which this run registers."""


class RunRequest(BaseModel):
    """Parameters of every flow: which recipe, with which overrides, in which workspace."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = Field(description="path of the recipe file (TOML)")
    overrides: tuple[str, ...] = Field(default=(), description="settings to override, each as section.key=value")
    parent_run_id: str | None = Field(
        default=None, description="MLflow run to nest this flow's runs under; none starts one"
    )

    def read(self) -> WholeRecipe:
        """Read and check the recipe.

        Raises:
            RecipeError: a mistake in the file or in an override.
        """
        return WholeRecipe.check(read_recipe(self.recipe, self.overrides))


@dataclass(frozen=True)
class WholeRecipe:
    """All sections of one recipe, each valid, and consistent with one another."""

    recipe: Recipe
    run: RunConfig
    documents: DocumentsConfig
    vocabulary: VocabularyConfig
    examples: ExamplesConfig
    model: ModelConfig
    pretraining: PretrainingConfig
    finetuning: FinetuningConfig
    tracking: TrackingConfig

    @classmethod
    def check(cls, recipe: Recipe) -> WholeRecipe:
        """Check all sections, then what only several of them together can tell.

        Raises:
            RecipeError: the first mistake, in one line.
        """
        whole = cls(
            recipe=recipe,
            run=recipe.section("run", RunConfig),
            documents=recipe.section("documents", DocumentsConfig),
            vocabulary=recipe.section("vocabulary", VocabularyConfig),
            examples=recipe.section("examples", ExamplesConfig),
            model=recipe.section("model", ModelConfig),
            pretraining=recipe.section("pretraining", PretrainingConfig),
            finetuning=recipe.section("finetuning", FinetuningConfig),
            tracking=recipe.section("tracking", TrackingConfig),
        )
        whole._check_lengths()
        whole._check_workspace()
        return whole

    @property
    def is_local(self) -> bool:
        """Does the workspace lie on a local disk?"""
        return storage.is_local(self.run.workspace)

    @property
    def model_prefix(self) -> str:
        return self.tracking.registered_model_prefix or self.run.name

    def sections(self) -> dict[str, Section]:
        """Every section by its name in the file."""
        return {
            "run": self.run,
            "documents": self.documents,
            "vocabulary": self.vocabulary,
            "examples": self.examples,
            "model": self.model,
            "pretraining": self.pretraining,
            "finetuning": self.finetuning,
            "tracking": self.tracking,
        }

    def _check_lengths(self) -> None:
        require_lengths_fit(self.model, self.pretraining, self.recipe.path)
        lengths = [length.max_seq_length for length in self.examples.lengths]
        for index, phase in enumerate(self.pretraining.phases):
            if phase.max_seq_length not in lengths:
                raise RecipeError(
                    f"{self.recipe.path}: pretraining.phases.{index}.max_seq_length = {phase.max_seq_length}: "
                    f"examples.lengths makes only {', '.join(map(str, lengths))}; "
                    "add this length there or use one of them"
                )
        if self.finetuning.tasks and self.finetuning.max_seq_length > self.model.max_position_embeddings:
            raise RecipeError(
                f"{self.recipe.path}: finetuning.max_seq_length = {self.finetuning.max_seq_length} exceeds "
                f"model.max_position_embeddings = {self.model.max_position_embeddings}; "
                "raise the latter or shorten the former"
            )

    def _check_workspace(self) -> None:
        if self.tracking.mlflow_tracking_uri is None and not self.is_local:
            raise RecipeError(
                f"{self.recipe.path}: run.workspace = {self.run.workspace} is not local, so MLflow's SQLite cannot "
                "lie in it; set tracking.mlflow_tracking_uri to a tracking server"
            )
