"""Recipe section `[finetuning]`: tasks, encoder and settings; light to import, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.contract.bounds import Processes as Ranks
from pipelines.contract.bounds import Text, UserPath
from pipelines.contract.recipe import ADDED, OPERATIONAL
from pipelines.contract.workspace import DATA_DIRECTORY
from training.settings.glue import BEGIN_FROM_MNLI, MNLI, WordOrderConfig
from training.settings.optimization import FittingConfig, OptimizerConfig, Rate
from training.settings.squad import SquadConfig
from training.settings.sweep import SweepConfig
from training.settings.tables import TableConfig
from training.settings.tagging import TaggingConfig
from training.settings.tasks import FAMILIES, Family, family_of, settings_problem, task_names

ClassifierHead = Literal["pooler", "bilstm", "segment_means"]


class FinetuningConfig(OptimizerConfig, FittingConfig):
    """`[finetuning]`: the tasks, and the paper's settings for GLUE; SQuAD and tagging have sections of their own."""

    tasks: tuple[Text, ...] = ()
    """Tasks to train; without this setting, all `tables`."""
    encoder: UserPath | None = None
    """Encoder to fine-tune instead of the workspace's own: a Hugging Face directory, a workspace, a checkpoint
    (`WORKSPACE@step-1000`), `models:/...`."""
    glue_dir: UserPath | None = None
    """Folder with GLUE's own sub-folders (CoLA, SST-2, MRPC ...)."""
    compare_with_random: bool = False
    """Also train each task from random weights, to show the gain of pre-training."""
    mnli_first: bool = False
    """Initialize MRPC, RTE and STS-B from the encoder fine-tuned on MNLI. A deviation: BERT did not."""
    dropout: Rate | None = None
    """Dropout everywhere in the model; None uses the encoder's own configuration."""
    classifier_head: ClassifierHead = Field(default="pooler", json_schema_extra=ADDED)
    """What classifies the texts of GLUE and tables: `pooler`, BERT's own, the pooled output; `bilstm`, a bidirectional
    LSTM over the encoder's output (paper, table 5); `segment_means`, the means of the two segments, their difference
    and product, for small encoders whose [CLS] does not compare two sentences. The latter two have random weights."""
    word_order: WordOrderConfig = WordOrderConfig()
    squad: SquadConfig = SquadConfig()
    tagging: TaggingConfig = TaggingConfig()
    tables: tuple[TableConfig, ...] = Field(default=(), json_schema_extra=ADDED)
    """Tasks of the user's own: files of rows with labels."""
    sweep: SweepConfig = SweepConfig()
    ranks: Ranks = Field(default=1, json_schema_extra=OPERATIONAL)
    """Processes of one node that share each batch; 0 means one per GPU."""

    def fitting(self, task: str) -> FittingConfig:
        """The loop settings for one task."""
        own = self.family(task).own_settings(self, task)
        return own if isinstance(own, FittingConfig) else self

    def fitting_key(self, task: str) -> str:
        """The recipe key of `fitting`."""
        return "finetuning" if self.fitting(task) is self else f"finetuning.{self.family(task).section}"

    def with_fitting(self, task: str, settings: Mapping[str, Any]) -> FinetuningConfig:
        """A copy of the section with other loop settings for one task."""
        fitting = self.fitting(task)
        if fitting is self:
            return self.model_copy(update=settings)
        return self.model_copy(update={self.family(task).section: fitting.model_copy(update=settings)})

    def family(self, task: str) -> Family:
        """The row of the table of families that a task belongs to."""
        return family_of(self, task)

    def begins_from_mnli(self, task: str) -> bool:
        """Whether a task is initialized from the encoder fine-tuned on MNLI."""
        return self.mnli_first and task in BEGIN_FROM_MNLI

    @model_validator(mode="before")
    @classmethod
    def _tables_are_tasks(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "tasks" in values or not isinstance(values.get("tables"), (list, tuple)):
            return values
        named = [
            table.get("name") if isinstance(table, dict) else getattr(table, "name", None) for table in values["tables"]
        ]
        # A table without a name is refused where it is checked, not as a task.
        return {**values, "tasks": tuple(name for name in named if isinstance(name, str))}

    @model_validator(mode="after")
    def _tables_have_names_of_their_own(self) -> FinetuningConfig:
        taken = {name.lower() for family in FAMILIES if family.section != "tables" for name in family.names(self)}
        taken.add(DATA_DIRECTORY)
        for table in self.tables:
            # File systems and model registries may ignore case.
            if table.name.lower() in taken:
                raise ValueError(f"tables: the name {table.name!r} is that of another task; choose another one")
            taken.add(table.name.lower())
        return self

    @model_validator(mode="after")
    def _batches_are_small(self) -> FinetuningConfig:
        self.refuse_pretraining_optimizer("fine-tune")
        return self

    @model_validator(mode="after")
    def _tasks_known(self) -> FinetuningConfig:
        valid = task_names(self)
        for task in self.tasks:
            if task not in valid:
                raise ValueError(f"tasks names {task!r}; valid names: {', '.join(valid)}")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks = {list(self.tasks)} names a task twice")
        if problem := settings_problem(self, self.tasks):
            raise ValueError(problem)
        others = [task for task in self.tasks if not self.family(task).reads_sequences]
        if self.classifier_head != "pooler" and others:
            raise ValueError(
                f"classifier_head = {self.classifier_head!r}, but {others[0]} predicts tokens; remove the task, or "
                "the setting"
            )
        if self.mnli_first and MNLI not in self.tasks:
            raise ValueError("mnli_first = true, but tasks does not name mnli; add it, or turn mnli_first off")
        return self


LOOP_SECTIONS = tuple(
    name
    for name, field in FinetuningConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, FittingConfig)
)
"""Sections below [finetuning] with loop settings of their own, a seed among them."""
