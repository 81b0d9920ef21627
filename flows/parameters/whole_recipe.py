"""Check every section of a recipe at once, before the first stage starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from flows import TRACKING_SERVER
from flows.parameters.contradictions import Sections, contradiction
from flows.parameters.deployed_request import completed
from flows.parameters.forms import SectionForm, form_of, toml_value
from flows.registry.promotion import CHANCE_MARGIN
from pipelines.contract import storage
from pipelines.contract.bounds import Bounded, Text
from pipelines.contract.recipe import Recipe, RunConfig, Section, lists_as_tuples, read_recipe
from pipelines.contract.recipe_text import RecipeError
from pipelines.settings.documents import DocumentsConfig
from pipelines.settings.examples import ExamplesConfig
from pipelines.settings.vocabulary import VocabularyConfig
from training.settings.distillation import DistillationConfig
from training.settings.finetuning import FinetuningConfig
from training.settings.pretraining import ModelConfig, PretrainingConfig

REGISTRY_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

_TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
_CHANCE = "a score of 0.5 above chance is asked of no task"
_MARGIN = "scores lie between -100 and 100, and 0 asks for no more than the champion's"


class TrackingConfig(Section):
    """`[tracking]`: where MLflow keeps runs and models, and how it names them."""

    mlflow_tracking_uri: Text | None = None
    """None means the server that MLFLOW_TRACKING_URI names or, without it, SQLite in the workspace (`mlflow.db`), with
    artifacts beside it (`mlartifacts/`)."""
    experiment: Text = "clozeworks"
    registered_model_prefix: Annotated[str, Field(pattern=REGISTRY_NAME_PATTERN, max_length=128)] | None = None
    """Models are registered as `<prefix>-encoder` and `<prefix>-<task>`; None means the name of the run."""
    alias: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=128)] = "champion"
    """Alias of the best version: one that this run registers gets it at the promotion gate."""
    promotion_margin: Annotated[float, Bounded(0.0, 100.0, _MARGIN)] = 0.0
    """By how much a new version's score must exceed the champion's to replace it; more is asked for than mere luck."""
    chance_margin: Annotated[float, Bounded(0.0, 0.5, _CHANCE)] = CHANCE_MARGIN
    """By how much a version's score must exceed that of one that learnt nothing (the best answer that is always the
    same; for an encoder, its own before training) to become champion, also where there is none yet."""

    @field_validator("mlflow_tracking_uri")
    @classmethod
    def _scheme_is_known(cls, uri: str | None) -> str | None:
        """Leave the URI as it is.

        Raises:
            ValueError: MLflow has no tracking store behind such a URI.
        """
        if uri is None or uri == "databricks":
            return uri
        scheme, separator, rest = uri.partition("://")
        if not separator or scheme.partition("+")[0] not in _TRACKING_SCHEMES or not rest:
            known = ", ".join(f"{name}://" for name in _TRACKING_SCHEMES)
            raise ValueError(f"must begin with one of {known} and name a server or a database")
        return uri


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

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

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
        default=None,
        gt=0,
        le=31_536_000,
        description="end a stage that takes longer; pre-training writes its checkpoint first",
    )
    rebuild: bool = Field(
        default=False,
        description="build every stage anew; trainings that are there are kept under a numbered name",
    )
    parent_run_id: str | None = Field(
        default=None, description="MLflow run to nest this flow's runs under; none starts one"
    )

    @model_validator(mode="before")
    @classmethod
    def _completed_with_tuples(cls, values: Any) -> Any:
        return lists_as_tuples(completed(values))

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
        whole._check_workspace()
        if problem := contradiction(whole._sections_to_compare()):
            raise RecipeError(f"{recipe.path}: {problem}")
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

    def _sections_to_compare(self) -> Sections:
        distillation = self.distillation if "distillation" in self.recipe.tables else None
        return Sections(self.documents, self.examples, self.model, self.pretraining, distillation, self.finetuning)

    def _check_workspace(self) -> None:
        if self.tracking_server is None and not self.is_local:
            raise RecipeError(
                f"{self.recipe.path}: run.workspace = {self.run.workspace} is not local, so MLflow's SQLite cannot "
                "lie in it; set tracking.mlflow_tracking_uri to a tracking server"
            )
