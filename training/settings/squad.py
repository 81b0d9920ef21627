"""Recipe section `[finetuning.squad]`; light to import, without torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from pipelines.contract import storage
from pipelines.contract.bounds import MAX_SEQ_LENGTH_LIMIT, Bounded, SequenceLength, UserPath
from pipelines.contract.errors import InputError
from training.settings.optimization import BatchSize, FittingConfig, LearningRate

Tokens = Annotated[int, Bounded(1, MAX_SEQ_LENGTH_LIMIT, "a row has no more tokens")]
Answers = Annotated[int, Bounded(1, 10_000, "this many answers are compared for each question")]
Score = Annotated[float, Bounded(-1e9, 1e9, "it is a difference of two scores, which are far smaller")]


class SquadConfig(FittingConfig):
    """`[finetuning.squad]`: files, windows and answers, with the paper's settings for SQuAD 1.1 (section 4.2).

    For 2.0 the paper (section 4.3) trains 2 epochs in batches of 48 at 5e-5: set num_train_epochs and batch_size.
    A file is 2.0 if some question in it has `is_impossible`. Lengths, stride and n-best are those of run_squad.py.
    """

    train_file: UserPath | None = None
    dev_file: UserPath | None = None
    batch_size: BatchSize = 32
    """Windows of one optimizer step, over all ranks."""
    learning_rate: LearningRate = 5e-5
    max_seq_length: SequenceLength = 384
    doc_stride: Tokens = 128
    """Context tokens from the start of one window to the start of the next."""
    max_query_length: Tokens = 64
    """Longer questions are truncated to this many tokens."""
    n_best_size: Answers = 20
    max_answer_length: Tokens = 30
    """Maximum tokens of a predicted answer."""
    null_threshold: Score | None = None
    """2.0: predict no answer if null score - best answer's score exceeds this; None takes, as in the paper, the value
    with the best F1 on the development file."""

    @model_validator(mode="after")
    def _windows_overlap(self) -> SquadConfig:
        room = self.max_seq_length - self.max_query_length - 3
        if room < 1:
            raise ValueError(
                f"max_seq_length = {self.max_seq_length} leaves no room for text after a question of "
                f"max_query_length = {self.max_query_length} tokens; raise the one or lower the other"
            )
        if self.doc_stride > room:
            raise ValueError(
                f"doc_stride = {self.doc_stride} exceeds the {room} context tokens that fit after a long question, "
                "so that text would be skipped; lower it"
            )
        return self


def data_files(config: SquadConfig) -> dict[str, str]:
    """Paths of the training and the development file, by their keys.

    Raises:
        InputError: one is not set, or missing.
    """
    paths = {}
    for key, path in (("train_file", config.train_file), ("dev_file", config.dev_file)):
        if path is None:
            raise InputError(f"finetuning.squad.{key} is not set; add --set finetuning.squad.{key}=<a SQuAD JSON file>")
        if storage.file_size_bytes(path) is None:
            raise InputError(f"{path}: missing; finetuning.squad.{key} must name a SQuAD JSON file")
        paths[key] = path
    return paths
