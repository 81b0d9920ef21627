"""The initial encoder of pre-training, and the architecture that follows from it. Must not import torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.workspace import CONFIG_NAME, ENCODER_DIRECTORY, PRETRAINING
from training.bert.config_file import read_config
from training.settings.model import ModelConfig
from training.stages.checkpoint_source import CheckpointSource, checkpoint_of
from training.stages.encoders import encoder_digest, encoder_directory

INITIAL_ENCODER = "initial_encoder"
"""Name of the encoder among the inputs of pre-training; the setting has the same."""

_MAY_DIFFER = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention")
_POSITIONS = "max_position_embeddings"


@dataclass(frozen=True)
class InitialEncoder:
    """A resolved `pretraining.initial_encoder`; `source` is as the recipe names it."""

    source: str
    digest: str
    model: ModelConfig

    @cached_property
    def directory(self) -> str:
        """Hugging Face directory; a checkpoint is exported for it."""
        return encoder_directory(self.source)

    @cached_property
    def vocab_size(self) -> int:
        """Rows of its word embeddings, which may exceed its vocabulary."""
        return read_config(self.directory)[1]


def resolved_encoder(source: str) -> InitialEncoder:
    """Find the encoder of `pretraining.initial_encoder`; a registered model is fetched.

    Raises:
        InputError: it does not exist, is damaged, or is not a BERT.
    """
    if (checkpoint := checkpoint_of(source)) is not None:
        return InitialEncoder(source, checkpoint.digest, _model_of_checkpoint(checkpoint))
    directory = encoder_directory(source)
    return InitialEncoder(source, encoder_digest(directory), read_config(directory)[0])


def continued_model(own: ModelConfig, encoder: ModelConfig, source: str, recipe_path: str) -> ModelConfig:
    """The architecture of a run from an initial encoder: the encoder's, with what a recipe may change.

    Dropout is no property of weights, position embeddings may be lengthened, and a left-to-right model may be trained
    on as a bidirectional one, or the other way round; without the key it stays what it is.

    Args:
        own: `[model]` of the recipe; only the keys that it sets count.
        encoder: architecture of the initial encoder.
        source: the encoder as the recipe names it.
        recipe_path: to show in errors.

    Raises:
        InputError: a key that the recipe sets contradicts the encoder.
    """
    changes = {}
    for name in own.model_fields_set - {"size"}:
        ours, its = getattr(own, name), getattr(encoder, name)
        if name in _MAY_DIFFER or (name == _POSITIONS and ours >= its):
            changes[name] = ours
        elif ours != its:
            remedy = "positions can be added only" if name == _POSITIONS else "weights cannot change their shape"
            if name in ("hidden_act", "layer_norm_eps", "initializer_range"):
                remedy = "its weights were trained with this value"
            raise InputError(
                f"{recipe_path}: model.{name} = {_shown(ours)}, but pretraining.initial_encoder = {source!r} has "
                f"{_shown(its)}, and {remedy}; remove the key (or model.size), since [model] is read from the encoder"
            )
    return encoder.model_copy(update=changes)


def model_at_hand(own: ModelConfig, source: str | None, recipe_path: str) -> ModelConfig | None:
    """The architecture of pre-training, if it is known without fetching anything; else None.

    Raises:
        InputError: the encoder's config.json is not usable, or a key of `[model]` contradicts it.
    """
    if source is None:
        return own
    if not storage.is_local(source):
        return None
    try:
        checkpoint = checkpoint_of(source)
    except InputError:
        return None  # no such checkpoint, which the stage will report
    if checkpoint is not None:
        return continued_model(own, _model_of_checkpoint(checkpoint), source, recipe_path)
    directory = storage.local_path(source)
    for place in (directory, storage.join(directory, PRETRAINING, ENCODER_DIRECTORY)):
        if os.path.isfile(storage.join(place, CONFIG_NAME)):
            return continued_model(own, read_config(place)[0], source, recipe_path)
    return None


def model_of(own: ModelConfig, source: str | None, recipe_path: str) -> ModelConfig:
    """The architecture of pre-training; a registered encoder is fetched for it.

    Raises:
        InputError: there is no such encoder, or a key of `[model]` contradicts it.
    """
    known = model_at_hand(own, source, recipe_path)
    if known is None:
        assert source is not None
        known = continued_model(own, resolved_encoder(source).model, source, recipe_path)
    return known


def _model_of_checkpoint(checkpoint: CheckpointSource) -> ModelConfig:
    return ModelConfig.model_validate(checkpoint.manifest.config["model"])


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str) else str(value)
