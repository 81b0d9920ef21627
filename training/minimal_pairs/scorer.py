"""Scores of sentences: pseudo-log-likelihood (Salazar et al., 2020) or, of a left-to-right model, log-likelihood.

Sentences of one length, or their masked copies, are computed together, so that attention needs no padding, and after
the last layer's attention only the tokens that predict are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipelines.contract.errors import InputError
from training.bert.config_file import read_config
from training.bert.heads import PreTrainingModel, build_pretraining_model
from training.bert.huggingface import load_into, read_weights
from training.bert.packing import pack
from training.minimal_pairs.masking import IntArray, Predictions, masked_copies, next_tokens
from training.minimal_pairs.pairs import MinimalPairs
from training.settings.model import ModelConfig
from training.settings.pretraining import WORD_L2R, PairsMethod
from training.tokenizing.loading import load_tokenizer

BATCH_TOKENS = 4_096
"""Tokens of one forward pass: the products are fast, and what lies between them stays in a CPU's cache."""
NUM_SPECIAL_TOKENS = 2
"""[CLS] and [SEP], which are not predicted."""
_HEAD = "predictions."


@dataclass(frozen=True)
class TokenizedSentence:
    """input_ids, word_numbers: [S] int64, with [CLS] and [SEP]; the pieces of a word have one number."""

    input_ids: IntArray
    word_numbers: IntArray


class SentenceTokenizer:
    """The tokenizer of a directory; a literal "[MASK]" in a sentence is text."""

    def __init__(self, directory: str) -> None:
        """Read the tokenizer.

        Raises:
            InputError: it is missing, not BERT's, or has no [MASK].
        """
        loaded = load_tokenizer(directory)
        self._tokenizer = loaded.for_texts()
        ids = {role: loaded.id_of(role) for role in ("cls_token", "sep_token", "mask_token", "unk_token")}
        for role, token_id in ids.items():
            if token_id is None and role != "unk_token":
                raise InputError(f"{directory}: its vocabulary has no {role}; give a masked language model")
        self._cls, self._sep = ids["cls_token"], ids["sep_token"]
        self.mask_id = int(ids["mask_token"] or 0)
        self._unknown_id = -1 if ids["unk_token"] is None else int(ids["unk_token"])

    def tokenize(self, sentences: Sequence[str]) -> list[TokenizedSentence]:
        """Ids and words of each sentence."""
        result = []
        for encoding in self._tokenizer.encode_batch(list(sentences), add_special_tokens=False):
            ids = np.array([self._cls, *encoding.ids, self._sep], dtype=np.int64)
            words = np.array([-1, *encoding.word_ids, -2], dtype=np.int64)
            result.append(TokenizedSentence(ids, words))
        return result

    def tokenize_pairs(self, pairs: MinimalPairs, max_position_embeddings: int) -> list[TokenizedSentence]:
        """All good sentences, then all bad ones.

        Raises:
            InputError: one has no token, or more than the model has positions.
        """
        sentences = self.tokenize([*pairs.good, *pairs.bad])
        for sentence, place in zip(sentences, [*pairs.places, *pairs.places], strict=True):
            count = len(sentence.input_ids)
            if not NUM_SPECIAL_TOKENS < count <= max_position_embeddings:
                raise InputError(
                    f"{place}: a sentence has {count} tokens with [CLS] and [SEP]; give {NUM_SPECIAL_TOKENS + 1} to "
                    f"{max_position_embeddings}, the positions of the model"
                )
        return sentences

    def unknown_tokens(self, sentences: Sequence[TokenizedSentence]) -> int:
        """How many tokens are [UNK]."""
        return sum(int((sentence.input_ids == self._unknown_id).sum()) for sentence in sentences)


class SentenceScorer:
    """A language model in eval mode; scores are sums of natural logarithms of probabilities."""

    def __init__(self, model: PreTrainingModel, mask_id: int, method: PairsMethod = WORD_L2R) -> None:
        """
        Args:
            model: a masked language model, or a left-to-right one.
            mask_id: the id of [MASK].
            method: what a masked language model masks.
        """
        self._model, self._mask_id, self._method = model.eval(), mask_id, method
        self._device = next(model.parameters()).device

    @torch.no_grad()
    def score(
        self, sentences: Sequence[TokenizedSentence], progress: Callable[[float], None] = lambda _: None
    ) -> npt.NDArray[np.float64]:
        """Sum over a sentence's tokens of log P(token | the copy that masks it, or the tokens before it): [sentences].

        Equal sentences are computed once, so that their scores are equal to the last bit.

        Args:
            progress: called after each batch with the share of the work that is done.
        """
        numbers: dict[bytes, int] = {}
        which = [numbers.setdefault(sentence.input_ids.tobytes(), len(numbers)) for sentence in sentences]
        distinct = list(dict(zip(which, sentences, strict=True)).values())
        total = sum(len(sentence.input_ids) - NUM_SPECIAL_TOKENS for sentence in distinct)
        scores = np.zeros(len(distinct), dtype=np.float64)
        done = 0
        for batch in self._batches(distinct):
            np.add.at(scores, batch.rows, self._log_probabilities(batch))
            done += len(batch.rows)
            progress(done / total)
        result: npt.NDArray[np.float64] = scores[which]
        return result

    def _log_probabilities(self, batch: Predictions) -> npt.NDArray[np.float64]:
        count, length = batch.input_ids.shape
        lengths = np.full(count, length, dtype=np.int64)
        packed = pack(batch.input_ids.reshape(-1), lengths, lengths).to(self._device)
        targets_M = torch.from_numpy(batch.targets).to(self._device)
        ids_M = torch.from_numpy(batch.target_ids).to(self._device)
        found_M = self._model.log_probabilities(packed, targets_M, ids_M)
        result: npt.NDArray[np.float64] = found_M.cpu().numpy().astype(np.float64)
        return result

    def _batches(self, sentences: Sequence[TokenizedSentence]) -> Iterator[Predictions]:
        """All predictions, those in sentences of one length together, the longest first."""
        lengths = np.array([len(sentence.input_ids) for sentence in sentences], dtype=np.int64)
        for length in np.unique(lengths)[::-1]:
            rows = np.flatnonzero(lengths == length)
            num_copies = max(1, BATCH_TOKENS // int(length))
            copies_of_one = 1 if self._model.predicts_next_tokens else int(length) - NUM_SPECIAL_TOKENS
            num_rows = max(1, num_copies // copies_of_one)
            for start in range(0, len(rows), num_rows):
                chosen = rows[start : start + num_rows]
                batch = self._predictions([sentences[row] for row in chosen])
                batch = batch._replace(rows=chosen[batch.rows])
                # A long sentence alone may have more copies than a batch holds.
                yield from _parts(batch, num_copies) if len(batch.input_ids) > num_copies else (batch,)

    def _predictions(self, sentences: Sequence[TokenizedSentence]) -> Predictions:
        ids = np.stack([sentence.input_ids for sentence in sentences])
        if self._model.predicts_next_tokens:
            return next_tokens(ids)
        words = np.stack([sentence.word_numbers for sentence in sentences])
        return masked_copies(ids, words, self._mask_id, self._method)


def _parts(copies: Predictions, num_copies: int) -> Iterator[Predictions]:
    """Masked copies, with one prediction each, in parts of at most `num_copies`."""
    length = copies.input_ids.shape[1]
    for first in range(0, len(copies.rows), num_copies):
        part = Predictions(*(values[first : first + num_copies] for values in copies))
        yield part._replace(targets=part.targets - first * length)


def method_in_words(model: ModelConfig, method: PairsMethod) -> str:
    """How a model's scores are made: what is masked, or the attention of a model that masks nothing."""
    return model.attention if model.predicts_next_tokens else method


def load_language_model(directory: str, device: torch.device | str = "cpu") -> PreTrainingModel:
    """Read the encoder of a Hugging Face directory, and the head that predicts tokens.

    Raises:
        InputError: it is not a BERT model that this code supports, or it has no such head.
    """
    config, vocab_size = read_config(directory)
    model = build_pretraining_model(config, vocab_size)
    state = read_weights(directory)
    if not any(name.startswith("cls.") and _HEAD in name for name in state):
        raise InputError(
            f"{directory}: has no masked-LM head, whose predictions are the scores; give a pre-trained model that was "
            "saved with it, not a fine-tuned one"
        )
    load_into(model, state, directory)
    return model.eval().to(device)
