"""Scores against a plain loop over `transformers`, for both ways of masking and for left-to-right models."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
import transformers
from tests.support.training.tiny_models import write_tiny_classifier
from tests.training.minimal_pairs.conftest import PAIRS

from pipelines.contract.errors import InputError
from training.minimal_pairs import scorer as scoring
from training.minimal_pairs.scorer import SentenceScorer, SentenceTokenizer, load_language_model
from training.settings.pretraining import PairsMethod

SENTENCES = [sentence for pair in PAIRS for sentence in pair] + ["The cats sleeping barking dogs is the cat."]


def plain_loop(directory: str, sentence: str, method: PairsMethod) -> float:
    """The score by one forward pass for each token."""
    model = transformers.BertForMaskedLM.from_pretrained(directory).eval()
    tokenizer = transformers.BertTokenizer.from_pretrained(directory)
    encoded = tokenizer(sentence)
    ids, words = encoded["input_ids"], encoded.word_ids()
    score = 0.0
    for target in range(1, len(ids) - 1):
        copy = list(ids)
        for position in range(target, len(ids) - 1):
            if position == target or (method == "word-l2r" and words[position] == words[target]):
                copy[position] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([copy])).logits[0, target]
        score += float(torch.log_softmax(logits, dim=0)[ids[target]])
    return score


@pytest.mark.parametrize("method", get_args(PairsMethod))
@pytest.mark.parametrize("batch_tokens", [1, 20, 8_192])
def test_scores_equal_a_plain_loop(
    method: PairsMethod, batch_tokens: int, masked_lm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "BATCH_TOKENS", batch_tokens)
    tokenizer = SentenceTokenizer(masked_lm)
    shares: list[float] = []
    scorer = SentenceScorer(load_language_model(masked_lm), tokenizer.mask_id, method)
    scores = scorer.score(tokenizer.tokenize(SENTENCES), shares.append)
    expected = [plain_loop(masked_lm, sentence, method) for sentence in SENTENCES]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_methods_differ_on_words_of_several_pieces(masked_lm: str) -> None:
    tokenizer = SentenceTokenizer(masked_lm)
    model = load_language_model(masked_lm)
    by_word, original = (
        SentenceScorer(model, tokenizer.mask_id, method).score(tokenizer.tokenize(["The dogs", "the dog"]))
        for method in ("word-l2r", "original")
    )
    assert by_word[0] != original[0]
    assert by_word[1] == original[1]


def test_a_literal_mask_in_a_sentence_is_text(masked_lm: str) -> None:
    tokenizer = SentenceTokenizer(masked_lm)
    (sentence,) = tokenizer.tokenize(["the [MASK]"])
    assert tokenizer.mask_id not in sentence.input_ids
    assert tokenizer.unknown_tokens([sentence]) == 3


def test_a_model_without_its_head_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = str(tmp_path_factory.mktemp("classifier"))
    write_tiny_classifier(directory)
    with pytest.raises(InputError, match="has no masked-LM head"):
        load_language_model(directory)


@pytest.mark.parametrize("batch_tokens", [1, 20, 8_192])
def test_left_to_right_scores_equal_a_plain_loop(
    batch_tokens: int, left_to_right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "BATCH_TOKENS", batch_tokens)
    tokenizer, reference = SentenceTokenizer(left_to_right), transformers.BertTokenizer.from_pretrained(left_to_right)
    scores = SentenceScorer(load_language_model(left_to_right), tokenizer.mask_id).score(tokenizer.tokenize(SENTENCES))
    model = transformers.BertLMHeadModel.from_pretrained(left_to_right).eval()
    for sentence, score in zip(SENTENCES, scores, strict=True):
        ids = reference(sentence)["input_ids"]
        expected = 0.0
        for target in range(1, len(ids) - 1):
            # Only what is before the token is given, so that nothing after it can count.
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids[:target]])).logits[0, -1]
            expected += float(torch.log_softmax(logits, dim=0)[ids[target]])
        assert score == pytest.approx(expected, abs=1e-4)
