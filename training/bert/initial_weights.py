"""Loads an encoder into a model that continues it: missing heads, further positions and words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch

from training.bert.heads import BertForPreTraining
from training.bert.huggingface import load_into, read_weights

HEADS = {
    "cls.predictions.": "masked-LM head",
    "bert.pooler.": "pooler",
    "cls.seq_relationship.": "next-sentence head",
}
"""Parts that an encoder may lack, by the prefix of their parameters."""

_WORDS, _POSITIONS = "bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight"
_BIAS = "cls.predictions.bias"


@dataclass(frozen=True)
class Changes:
    """How a model differs from the encoder that was loaded into it, as `Lineage` states it."""

    initialized: list[str] = field(default_factory=list)
    extended: dict[str, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def load_initial_weights(
    model: BertForPreTraining, directory: str, new_entries: Mapping[int, tuple[int, ...]]
) -> Changes:
    """Copy an encoder's weights into a model; what the encoder lacks keeps the model's values.

    Args:
        model: with initial weights; it may have more positions and a larger vocabulary than the encoder.
        directory: Hugging Face directory of the encoder.
        new_entries: ids of words that the encoder does not have, each with the ids of its pieces there.

    Raises:
        InputError: a weight is missing, has another shape, or is not finite.
    """
    state = read_weights(directory)
    extended = {}
    wanted = {name: parameter.shape[0] for name, parameter in model.named_parameters()}
    positions = state.get(_POSITIONS)
    if positions is not None and (added := wanted[_POSITIONS] - positions.shape[0]) > 0:
        state[_POSITIONS] = tiled(positions, wanted[_POSITIONS])
        extended["positions"] = added
    if new_entries:
        for name in (_WORDS, _BIAS):
            if name in state:
                state[name] = with_means_of_pieces(state[name], new_entries, wanted[name])
        extended["vocabulary entries"] = len(new_entries)
    kept = load_into(model, state, directory, optional=tuple(HEADS))
    return Changes(_missing(model, kept), extended, _unused(state.keys() - wanted.keys()))


def tiled(positions_PH: torch.Tensor, count: int) -> torch.Tensor:
    """Position embeddings [count, H] that repeat the first ones from their start.

    A copy of learned positions keeps the local structure that attention heads rely on, and trains much faster than
    random ones (Beltagy et al., 2020, Longformer, section 5).
    """
    times = -(-count // positions_PH.shape[0])
    return positions_PH.repeat(times, 1)[:count]


def with_means_of_pieces(rows: torch.Tensor, new_entries: Mapping[int, tuple[int, ...]], count: int) -> torch.Tensor:
    """One row per entry, [count, ...]: a new entry has the mean of the rows of its former pieces, in fp32."""
    if rows.shape[0] > count or max(map(max, new_entries.values())) >= rows.shape[0]:
        return rows  # not of the size in config.json, which load_into refuses
    extended = torch.zeros(count, *rows.shape[1:], dtype=torch.float32)
    extended[: rows.shape[0]] = rows
    for token_id, pieces in new_entries.items():
        extended[token_id] = rows[list(pieces)].float().mean(0)
    return extended


def averaged(
    weights: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor], share: float, initialized: Collection[str]
) -> dict[str, torch.Tensor]:
    """The mean of trained and initial weights, by name; what the initial encoder lacks stays as trained.

    The mean is often better than both where one was trained from the other (Wortsman et al., 2022, "Robust fine-tuning
    of zero-shot models", section 3).

    Args:
        weights: trained. initial: as `load_initial_weights` filled them. share: of the initial ones.
        initialized: parts that the encoder lacks, as `Changes` names them.
    """
    own = tuple(prefix for prefix, part in HEADS.items() if part in initialized)
    return {
        name: value if name.startswith(own) else torch.lerp(value, initial[name].detach(), share)
        for name, value in weights.items()
    }


def _missing(model: BertForPreTraining, kept: list[str]) -> list[str]:
    """The heads that an encoder lacks; single parameters where it has the rest of a head."""
    found = []
    for prefix, head in HEADS.items():
        # The decoder is the word embeddings, which named_parameters() lists once, there.
        own = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
        lacking = [name for name in own if name in kept]
        found += [head] if lacking == own and own else lacking
    return found


def _unused(names: set[str]) -> list[str]:
    """The heads that only the encoder has; other parameters by the module at their start."""
    known = {name: head for prefix, head in HEADS.items() for name in names if name.startswith(prefix)}
    return sorted({known.get(name, name.split(".")[0]) for name in names})
