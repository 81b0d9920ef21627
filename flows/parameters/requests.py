"""Parameters of the flows, as forms on Prefect's page and as requests in code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows.parameters.deployed_request import completed
from flows.parameters.forms import SectionForm, form_of, toml_value
from flows.parameters.whole_recipe import WholeRecipe
from pipelines.contract.recipe import lists_as_tuples, read_recipe
from pipelines.settings.documents import DocumentsConfig
from pipelines.settings.examples import ExamplesConfig
from pipelines.settings.preprocessing import PreprocessingConfig
from pipelines.settings.vocabulary import VocabularyConfig
from training.settings.distillation import DistillationConfig
from training.settings.finetuning import FinetuningConfig
from training.settings.model import ModelConfig
from training.settings.pretraining import PretrainingConfig

if TYPE_CHECKING:
    # Generated at run time; a type checker sees their base class.
    PreprocessingForm: TypeAlias = SectionForm
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
    PreprocessingForm = form_of(PreprocessingConfig)


DeploymentName: TypeAlias = Annotated[str, Field(min_length=1, pattern=r"^[^/]+$")]
_PART = (
    "deployment of the flow `{flow}` that builds this part on its own work pool, such as {example}; none builds it in "
    "this run"
)


class BaseRequest(BaseModel):
    """Parameters that all flows share: the recipe, changes to it, and how its stages are run.

    A setting in a form overrides the recipe, and `overrides` override both. In a run of a deployment `recipe` may
    be omitted: the request is then merged into the deployment's request, key by key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True, serialize_by_alias=True)

    needs_corpus: ClassVar[bool] = True
    """Whether the flow begins with a corpus; one that does not takes a recipe without [documents]."""

    recipe: str = Field(min_length=1, description="path of the recipe file (TOML), such as flows/recipes/demo.toml")
    workspace: str | None = Field(
        default=None, min_length=1, description="directory of the run, instead of the recipe's"
    )
    overrides: tuple[str, ...] = Field(
        default=(),
        description="settings to override, each as section.key=value, such as pretraining.seed=7; they override those "
        "of a section's form",
    )
    stage_retries: int = Field(
        default=0, ge=0, le=10, description="further attempts after a stage has failed; none for an error in the recipe"
    )
    stage_timeout_seconds: float | None = Field(
        default=None,
        gt=0,
        le=31_536_000,
        description="stop a stage that takes longer; pre-training writes a checkpoint first",
    )
    rebuild: bool = Field(
        default=False,
        description="build every stage again; existing trainings are kept under a numbered name",
    )
    parent_run_id: str | None = Field(
        default=None, description="MLflow run to nest this flow's runs under; none starts one"
    )

    @model_validator(mode="before")
    @classmethod
    def _completed_with_tuples(cls, values: Any) -> Any:
        return lists_as_tuples(completed(values, "recipe"))

    @property
    def file(self) -> str:
        """What the run is named after."""
        return self.recipe

    def read(self) -> WholeRecipe:
        """Read and check the recipe.

        Raises:
            RecipeError: the file, a form or an override is not valid.
        """
        return WholeRecipe.check(read_recipe(self.recipe, self.all_overrides()), self.needs_corpus)

    def all_overrides(self) -> tuple[str, ...]:
        """Overrides of the forms, the workspace and `overrides`, in the order in which they are applied."""
        found: list[str] = []
        for name in type(self).model_fields:
            form = getattr(self, name)
            if isinstance(form, SectionForm):
                found += form.overrides(name)
        if self.workspace is not None:
            found.append(f"run.workspace={toml_value(self.workspace)}")
        return (*found, *self.overrides)


class StudyRequest(BaseModel):
    """Parameters of a study. In a run of a deployment `study` may be omitted, as `recipe` of the other requests."""

    model_config = BaseRequest.model_config

    study: str = Field(min_length=1, description="path of the study (TOML), such as flows/studies/masking.toml")
    overrides: tuple[str, ...] = Field(
        default=(), description="settings to override in all runs of the study, each as section.key=value"
    )

    @model_validator(mode="before")
    @classmethod
    def _completed_with_tuples(cls, values: Any) -> Any:
        return lists_as_tuples(completed(values, "study"))

    @property
    def file(self) -> str:
        """What the run is named after."""
        return self.study


class PreprocessRequest(BaseRequest):
    """Parameters of the flow that turns text into examples."""

    preprocessing: PreprocessingForm | None = None
    documents: DocumentsForm | None = None
    vocabulary: VocabularyForm | None = None
    examples: ExamplesForm | None = None


class PretrainRequest(BaseRequest):
    """Parameters of the flow that pre-trains the encoder."""

    model: ModelForm | None = None
    pretraining: PretrainingForm | None = None
    continue_finished: bool = Field(
        default=False,
        description="start pre-training from the newest checkpoint of the finished run that the recipe can share, "
        "instead of step 0",
    )


class DistillRequest(BaseRequest):
    """Parameters of the flow that distils the encoder."""

    distillation: DistillationForm | None = None


class FinetuneRequest(BaseRequest):
    """Parameters of the flow that fine-tunes the encoder."""

    needs_corpus: ClassVar[bool] = False

    finetuning: FinetuningForm | None = None
    trials_deployment: DeploymentName | None = Field(
        default=None,
        description="deployment of the flow `trial` that trains each trial as a run of its own, such as trial; none "
        "trains one after the other in this run",
    )


class TrialRequest(BaseRequest):
    """Parameters of the flow that trains one trial of fine-tuning."""

    needs_corpus: ClassVar[bool] = False

    trial: str = Field(min_length=1, description="TASK/START, such as rte/pretrained, or TASK/sweep/NAME of a sweep")


class RunRequest(PreprocessRequest, PretrainRequest, FinetuneRequest):
    """Parameters of the complete chain; each of its flows takes it too."""

    needs_corpus: ClassVar[bool] = True

    preprocess_deployment: DeploymentName | None = Field(
        default=None, description=_PART.format(flow="preprocess", example="preprocess-part")
    )
    pretrain_deployment: DeploymentName | None = Field(
        default=None, description=_PART.format(flow="pretrain", example="pretrain-part")
    )
    finetune_deployment: DeploymentName | None = Field(
        default=None, description=_PART.format(flow="finetune", example="finetune-part")
    )
