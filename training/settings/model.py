"""Recipe section `[model]`; light to import, without torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipelines.contract.bounds import Bounded, SequenceLength
from pipelines.contract.recipe import ADDED, OPERATIONAL, Section
from training.settings.optimization import Epsilon, Rate

Spread = Annotated[float, Bounded(1e-6, 10.0, "it is the standard deviation of new weights; BERT has 0.02")]


_WIDTH = "each layer has matrices of this width, and all are held in memory"

Attention = Literal["bidirectional", "left_to_right", "two_directions"]


SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
    "mini": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024},
    "small": {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048},
    "medium": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
"""`model.size`: base and large as in the paper, section 3; the others as in Turc et al., 2019, table 1."""


class ModelConfig(Section):
    """`[model]`: the encoder's architecture; the vocabulary size comes from the vocabulary stage.

    The defaults are BERT-base of the paper, section 3; names are those of the released code's bert_config.json.
    """

    size: Literal["tiny", "mini", "small", "medium", "base", "large"] | None = Field(
        default=None, json_schema_extra=OPERATIONAL
    )
    """A name for the four numbers of SHAPES; a number that is set explicitly overrides it."""
    hidden_size: Annotated[int, Bounded(1, 65_536, _WIDTH)] = 768
    num_hidden_layers: Annotated[int, Bounded(1, 1_000, "BERT-large has 24, and all are held in memory")] = 12
    num_attention_heads: Annotated[int, Bounded(1, 4_096, "heads share hidden_size among them")] = 12
    intermediate_size: Annotated[int, Bounded(1, 1 << 20, _WIDTH)] = 3072
    max_position_embeddings: SequenceLength = 512
    type_vocab_size: Annotated[int, Bounded(2, 1_024, "a row has two segments")] = 2
    hidden_act: Literal["gelu", "gelu_new"] = "gelu"
    """`gelu` is the exact one (erf), used to train the paper's models; `gelu_new` its tanh approximation, in the
    released code since February 2019. Both are Hugging Face's names."""
    hidden_dropout_prob: Rate = 0.1
    attention_probs_dropout_prob: Rate = 0.1
    layer_norm_eps: Epsilon = 1e-12
    initializer_range: Spread = 0.02
    attention: Attention = Field(default="bidirectional", json_schema_extra=ADDED)
    """Which tokens a token attends to, which determines the objective of pre-training: `bidirectional`, all of them, is
    BERT's; `left_to_right`, itself and those before it, is trained to predict the next token (paper, table 5);
    `two_directions` has two such encoders, one for each direction, with twice the parameters (ELMo)."""

    @model_validator(mode="before")
    @classmethod
    def _expand_size(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("size"), str):
            return {**SHAPES.get(values["size"], {}), **values}
        return values

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> ModelConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} is not a multiple of num_attention_heads = "
                f"{self.num_attention_heads}; change one so that every head has the same size"
            )
        return self

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def is_causal(self) -> bool:
        """Whether a token attends only to itself and those before it."""
        return self.attention == "left_to_right"

    @property
    def predicts_next_tokens(self) -> bool:
        """Whether pre-training predicts the next token, and not masked ones."""
        return self.attention != "bidirectional"

    @property
    def num_encoders(self) -> int:
        return 2 if self.attention == "two_directions" else 1

    @property
    def output_size(self) -> int:
        """Numbers of a token's output: those of all encoders."""
        return self.num_encoders * self.hidden_size
