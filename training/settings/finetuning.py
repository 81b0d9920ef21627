"""Recipe section `[finetuning]`: which tasks, from which encoder, with which settings; light, without torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipelines.contract.bounds import Bounded, Seed, Text, UserPath
from pipelines.contract.bounds import Processes as Ranks
from pipelines.contract.recipe import OPERATIONAL, Section
from training.settings.glue import GLUE_TASK_NAMES, MNLI, SQUAD, TAGGING, WORD_ORDER
from training.settings.optimization import FittingConfig, OptimizerConfig, Rate
from training.settings.squad import SquadConfig
from training.settings.sweep import SweepConfig
from training.settings.tagging import TaggingConfig

Rows = Annotated[int, Bounded(2, 100_000_000, "half of them stay in order, half do not, and all are held in memory")]
Words = Annotated[int, Bounded(3, 10_000, "a sentence needs some words for an order, and is a row of at most so many")]
Run = Annotated[int, Bounded(2, 10_000, "one word alone has no order")]


class WordOrderConfig(Section):
    """`[finetuning.word_order]`: the demonstration task, made from held-out documents in CoLA's own form."""

    max_train_examples: Rows = 4_000
    max_dev_examples: Rows = 1_000
    min_words: Words = 6
    max_words: Words = 40
    damaged_words: Run = 5
    """Length of the run of neighbouring words whose order is changed."""
    seed: Seed = 12_345

    @model_validator(mode="after")
    def _words_fit(self) -> WordOrderConfig:
        if not self.damaged_words <= self.min_words <= self.max_words:
            raise ValueError(
                f"damaged_words = {self.damaged_words}, min_words = {self.min_words}, max_words = {self.max_words} "
                "must not decrease in this order"
            )
        return self


class FinetuningConfig(OptimizerConfig, FittingConfig):
    """`[finetuning]`: the tasks, and the paper's settings for GLUE; SQuAD and tagging have sections of their own."""

    tasks: tuple[Text, ...] = ()
    encoder: UserPath | None = None
    """Where to begin, instead of the workspace's own encoder: a Hugging Face directory, a workspace, `models:/...`."""
    glue_dir: UserPath | None = None
    """Folder with GLUE's own sub-folders (CoLA, SST-2, MRPC ...)."""
    compare_with_random: bool = False
    """Also train each task from random weights, to show what pre-training bought."""
    mnli_first: bool = False
    """Begin MRPC, RTE and STS-B from the encoder as the task mnli left it. BERT did not, so it deviates."""
    dropout: Rate | None = None
    """Dropout everywhere in the model; None is what the encoder's own configuration says."""
    word_order: WordOrderConfig = WordOrderConfig()
    squad: SquadConfig = SquadConfig()
    tagging: TaggingConfig = TaggingConfig()
    sweep: SweepConfig = SweepConfig()
    ranks: Ranks = Field(default=1, json_schema_extra=OPERATIONAL)
    """Processes of one node that share each batch; 0 means one per GPU."""

    def fitting(self, task: str) -> FittingConfig:
        """The settings of the loop for one task."""
        return {SQUAD: self.squad, TAGGING: self.tagging}.get(task, self)

    @model_validator(mode="after")
    def _batches_are_small(self) -> FinetuningConfig:
        self.refuse_large_batch_optimizer("fine-tune")
        return self

    @model_validator(mode="after")
    def _tasks_known(self) -> FinetuningConfig:
        valid = (*GLUE_TASK_NAMES, WORD_ORDER, SQUAD, TAGGING)
        for task in self.tasks:
            if task not in valid:
                raise ValueError(f"tasks names {task!r}; valid names: {', '.join(valid)}")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks = {list(self.tasks)} names a task twice")
        glue_tasks = [task for task in self.tasks if task in GLUE_TASK_NAMES]
        if glue_tasks and self.glue_dir is None:
            raise ValueError(
                f"tasks asks for {', '.join(glue_tasks)} but glue_dir is not set; add "
                "--set finetuning.glue_dir=<folder that holds CoLA, RTE ...>"
            )
        for task, section in ((SQUAD, self.squad), (TAGGING, self.tagging)):
            if task in self.tasks and not (section.train_file and section.dev_file):
                raise ValueError(
                    f"tasks asks for {task} but {task}.train_file or {task}.dev_file is not set; add "
                    f"--set finetuning.{task}.train_file=<file>, and dev_file likewise"
                )
        if self.mnli_first and MNLI not in self.tasks:
            raise ValueError("mnli_first = true, but tasks does not name mnli; add it, or turn mnli_first off")
        return self
