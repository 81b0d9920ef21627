"""Recipe section `[finetuning.tagging]`; light to import, without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.contract import storage
from pipelines.contract.bounds import Bounded, SequenceLength, UserPath
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import ADDED
from training.settings.optimization import FittingConfig, LearningRate

Layer = Annotated[int, Bounded(-1_000, 1_000, "it counts an encoder's layers, below 0 from the last")]
Column = Annotated[int, Bounded(-1_000, 1_000, "it counts columns of a file, below 0 from the last")]


class TaggingConfig(FittingConfig):
    """`[finetuning.tagging]`: CoNLL files and how to read them.

    For CoNLL-2003 the paper (section 5.3) states batch 32 and 3 epochs but no rate; 5e-5 is the largest of its grid.
    """

    train_file: UserPath | None = None
    dev_file: UserPath | None = None
    test_file: UserPath | None = None
    """Scored once, with the best epoch's weights; its predictions are written next to those on dev_file."""
    token_column: Column = 0
    """Column of the word, from 0; -1 is the last."""
    label_column: Column = -1
    scheme: Literal["auto", "iob1", "iob2", "bioes", "tokens"] = "auto"
    """Label scheme of the files; `auto` detects it for each file. The model learns IOB2 or, from `tokens`, plain
    labels such as parts of speech."""
    document_context: bool = False
    """Fill rows with surrounding sentences, as in the paper; the files need -DOCSTART- rows for it."""
    feature_layers: tuple[Layer, ...] = Field(default=(), json_schema_extra=ADDED)
    """Tag by features of an encoder that is not trained: an LSTM reads the hidden states of these layers, 0 for the
    embeddings' output, -1 for the last layer (paper, table 7). Without this setting the encoder is fine-tuned."""
    feature_mix: Literal["concatenated", "weighted_sum"] = Field(default="concatenated", json_schema_extra=ADDED)
    """What becomes of the states of several layers; the weights of a sum are learnt."""
    learning_rate: LearningRate = 5e-5
    max_seq_length: SequenceLength = 128
    """Tokens of a row; a longer sentence is split into several rows, each of its words still labelled once."""

    @model_validator(mode="after")
    def _columns_differ(self) -> TaggingConfig:
        if self.token_column == self.label_column:
            raise ValueError(f"token_column and label_column are both {self.token_column}; change one")
        return self

    @model_validator(mode="after")
    def _layers_differ(self) -> TaggingConfig:
        if len(set(self.feature_layers)) < len(self.feature_layers):
            raise ValueError(f"feature_layers = {list(self.feature_layers)} names a layer twice; remove one")
        if self.feature_mix != "concatenated" and not self.feature_layers:
            raise ValueError(f"feature_mix = {self.feature_mix!r} mixes feature_layers, which is empty; set it")
        return self


def data_files(config: TaggingConfig) -> dict[str, str]:
    """Paths of the training, the development and, if set, the test file, by their keys.

    Raises:
        InputError: one of the first two is not set, or a file is missing.
    """
    paths = {}
    for key, path in (
        ("train_file", config.train_file),
        ("dev_file", config.dev_file),
        ("test_file", config.test_file),
    ):
        if path is None:
            if key == "test_file":
                continue
            raise InputError(
                f"finetuning.tagging.{key} is not set; add --set finetuning.tagging.{key}=<a CoNLL column file>"
            )
        if storage.file_size_bytes(path) is None:
            raise InputError(f"{path}: missing; finetuning.tagging.{key} must name a CoNLL column file")
        paths[key] = path
    return paths
