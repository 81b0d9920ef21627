"""Check every section of a recipe at once, before the first stage starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows import TRACKING_SERVER
from flows.deployed_request import completed
from flows.promotion import CHANCE_MARGIN
from flows.recipe_forms import SectionForm, form_of, toml_value
from pipelines import storage
from pipelines.config import DocumentsConfig, ExamplesConfig, VocabularyConfig
from pipelines.recipe import Recipe, RecipeError, RunConfig, Section, read_recipe
from training.config import ModelConfig, PretrainingConfig, require_lengths_fit
from training.distillation_config import DistillationConfig
from training.finetuning_config import FinetuningConfig

REGISTRY_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class TrackingConfig(Section):
    """`[tracking]`: where MLflow keeps runs and models, and how it names them."""

    mlflow_tracking_uri: str | None = None
    """None means the server that MLFLOW_TRACKING_URI names or, without it, SQLite in the workspace (`mlflow.db`), with
    artifacts beside it (`mlartifacts/`)."""
    experiment: str = Field("clozeworks", min_length=1)
    registered_model_prefix: str | None = Field(None, pattern=REGISTRY_NAME_PATTERN)
    """Models are registered as `<prefix>-encoder` and `<prefix>-<task>`; None means the name of the run."""
    alias: str = Field("champion", pattern=r"^[a-z][a-z0-9_-]*$")
    """Alias of the best version: one that this run registers gets it at the promotion gate."""
    promotion_margin: float = Field(default=0.0, ge=0.0, le=1.0)
    """By how much a new version's score must exceed the champion's to replace it; more is asked for than mere luck."""
    chance_margin: float = Field(default=CHANCE_MARGIN, ge=0.0, le=0.5)
    """By how much a version's score must exceed that of one that learnt nothing (the best answer that is always the
    same; for an encoder, its own before training) to become champion, also where there is none yet."""


SECTION_MODELS: dict[str, type[Section]] = {
    "run": RunConfig,
    "documents": DocumentsConfig,
    "vocabulary": VocabularyConfig,
    "examples": ExamplesConfig,
    "model": ModelConfig,
    "pretraining": PretrainingConfig,
    "distillation": DistillationConfig,
    "finetuning": FinetuningConfig,
    "tracking": TrackingConfig,
}

if TYPE_CHECKING:
    # Generated at run time; a type checker knows what they have in common.
    DocumentsForm: TypeAlias = SectionForm
    VocabularyForm: TypeAlias = SectionForm
    ExamplesForm: TypeAlias = SectionForm
    ModelForm: TypeAlias = SectionForm
    PretrainingForm: TypeAlias = SectionForm
    DistillationForm: TypeAlias = SectionForm
    FinetuningForm: TypeAlias = SectionForm
else:
    DocumentsForm, VocabularyForm, ExamplesForm = map(form_of, (DocumentsConfig, VocabularyConfig, ExamplesConfig))
    ModelForm, PretrainingForm, FinetuningForm = map(form_of, (ModelConfig, PretrainingConfig, FinetuningConfig))
    DistillationForm = form_of(DistillationConfig)


class BaseRequest(BaseModel):
    """Parameters that all flows share: which recipe, what to change in it, and how its stages are run.

    A setting in a form goes before the recipe's, one in `overrides` before both. In a run of a deployment `recipe` may
    be left out: what is given then changes the deployment's request, key by key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = Field(min_length=1, description="path of the recipe file (TOML), such as flows/recipes/demo.toml")
    workspace: str | None = Field(
        default=None, min_length=1, description="directory of the run, instead of the recipe's"
    )
    overrides: tuple[str, ...] = Field(
        default=(),
        description="settings to override, each as section.key=value, such as pretraining.seed=7; they go before those "
        "of a section's form",
    )
    stage_retries: int = Field(
        default=0, ge=0, le=10, description="attempts after a stage has failed; a mistake in the recipe gets none"
    )
    stage_timeout_seconds: float | None = Field(
        default=None, gt=0, description="end a stage that takes longer; pre-training writes its checkpoint first"
    )
    rebuild: bool = Field(default=False, description="build every stage anew, also those that are complete")
    parent_run_id: str | None = Field(
        default=None, description="MLflow run to nest this flow's runs under; none starts one"
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        return completed(given)

    def read(self) -> WholeRecipe:
        """Read and check the recipe.

        Raises:
            RecipeError: a mistake in the file, in a form or in an override.
        """
        return WholeRecipe.check(read_recipe(self.recipe, self.all_overrides()))

    def all_overrides(self) -> tuple[str, ...]:
        """What the forms, the workspace and `overrides` change, in the order in which it is applied."""
        found: list[str] = []
        for name in type(self).model_fields:
            form = getattr(self, name)
            if isinstance(form, SectionForm):
                found += form.overrides(name)
        if self.workspace is not None:
            found.append(f"run.workspace={toml_value(self.workspace)}")
        return (*found, *self.overrides)


class PreprocessRequest(BaseRequest):
    """Parameters of the flow that turns text into examples."""

    documents: DocumentsForm | None = None
    vocabulary: VocabularyForm | None = None
    examples: ExamplesForm | None = None


class PretrainRequest(BaseRequest):
    """Parameters of the flow that pre-trains the encoder."""

    model: ModelForm | None = None
    pretraining: PretrainingForm | None = None


class DistillRequest(BaseRequest):
    """Parameters of the flow that distils the encoder."""

    distillation: DistillationForm | None = None


class FinetuneRequest(BaseRequest):
    """Parameters of the flow that fine-tunes the encoder."""

    finetuning: FinetuningForm | None = None


class RunRequest(PreprocessRequest, PretrainRequest, FinetuneRequest):
    """Parameters of the whole chain; each of its flows takes it too."""


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
    distillation: DistillationConfig
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
            distillation=recipe.section("distillation", DistillationConfig),
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
    def tracking_server(self) -> str | None:
        """MLflow's server; None where SQLite in the workspace takes its place."""
        return self.tracking.mlflow_tracking_uri or TRACKING_SERVER

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
            "distillation": self.distillation,
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
        if self.tracking_server is None and not self.is_local:
            raise RecipeError(
                f"{self.recipe.path}: run.workspace = {self.run.workspace} is not local, so MLflow's SQLite cannot "
                "lie in it; set tracking.mlflow_tracking_uri to a tracking server"
            )
