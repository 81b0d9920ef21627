"""Pseudo-log-likelihoods of BLiMP's sentences: ours against a plain loop over `transformers`, scores compared.

The plain loop pads the masked copies of several sentences, ordered by length, into batches of as many tokens as ours.
Both use all threads that torch takes; figures are wall clock, in turn, for a model of random weights (its size decides
the time, not its weights). `all_pairs_minutes` extrapolates the sample to BLiMP's 67,000 pairs by its masked copies'
tokens; `--all` measures it.

    make bench NAME=blimp
    .venv/bin/python tests/benchmarks/blimp.py --all
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from tests.support import REPOSITORY
from tests.support.measuring import report

from training.minimal_pairs.pairs import MinimalPairs, read_pairs
from training.minimal_pairs.scorer import BATCH_TOKENS, SentenceScorer, SentenceTokenizer, load_language_model
from training.settings.model import SHAPES

DATA = REPOSITORY.parent / "shared" / "data"
PAIRS_PER_GROUP = 4
ROUNDS = 3


def write_model(directory: str, size: str) -> None:
    """A BERT of random weights with the vocabulary of bert-base-uncased."""
    torch.manual_seed(0)
    tokenizer = transformers.BertTokenizer(vocab=str(DATA / "vocab" / "bert-base-uncased-vocab.txt"))
    config = transformers.BertConfig(vocab_size=len(tokenizer), **SHAPES[size])
    transformers.BertForMaskedLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@torch.no_grad()
def plain_scores(directory: str, sentences: list[str]) -> np.ndarray:
    """Scores by `transformers`: word-l2r copies, padded."""
    model = transformers.BertForMaskedLM.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    copies: list[tuple[int, int, int, list[int]]] = []
    for row, sentence in enumerate(sentences):
        encoded = tokenizer(sentence)
        ids, words = encoded["input_ids"], encoded.word_ids()
        for target in range(1, len(ids) - 1):
            copy = [
                tokenizer.mask_token_id if place >= target and words[place] == words[target] else token
                for place, token in enumerate(ids)
            ]
            copies.append((row, target, ids[target], copy))
    copies.sort(key=lambda each: -len(each[3]))
    scores = np.zeros(len(sentences))
    while copies:
        batch = copies[: max(1, BATCH_TOKENS // len(copies[0][3]))]
        del copies[: len(batch)]
        padded = tokenizer.pad({"input_ids": [copy for *_, copy in batch]}, return_tensors="pt")
        logits = model(**padded).logits
        chosen = logits[torch.arange(len(batch)), torch.tensor([target for _, target, *_ in batch])]
        labels = torch.tensor([label for _, _, label, _ in batch])
        found = torch.log_softmax(chosen, dim=1).gather(1, labels[:, None])[:, 0]
        np.add.at(scores, [row for row, *_ in batch], found.numpy())
    return scores


def copy_tokens(tokenizer: SentenceTokenizer, pairs: MinimalPairs) -> int:
    """Tokens of all masked copies of the distinct sentences."""
    lengths = [len(each.input_ids) for each in tokenizer.tokenize(sorted({*pairs.good, *pairs.bad}))]
    return sum(length * (length - 2) for length in lengths)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="mini", choices=sorted(SHAPES))
    parser.add_argument("--all", action="store_true", help="also score all 67,000 pairs")
    parsed = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    everything = read_pairs(str(DATA / "blimp"))
    pairs = everything.sample_of_each_group(PAIRS_PER_GROUP)
    with tempfile.TemporaryDirectory() as folder:
        directory = str(Path(folder) / "model")
        write_model(directory, parsed.size)
        tokenizer, model = SentenceTokenizer(directory), load_language_model(directory)
        scorer = SentenceScorer(model, tokenizer.mask_id)
        sentences = [*pairs.good, *pairs.bad]
        ours_seconds, peer_seconds = [], []
        for _ in range(ROUNDS):
            started = time.monotonic()
            ours = scorer.score(tokenizer.tokenize(sentences))
            between = time.monotonic()
            theirs = plain_scores(directory, sentences)
            ours_seconds.append(between - started)
            peer_seconds.append(time.monotonic() - between)
        growth = copy_tokens(tokenizer, everything) / copy_tokens(tokenizer, pairs)
        measured = {}
        if parsed.all:
            started = time.monotonic()
            scorer.score(tokenizer.tokenize([*everything.good, *everything.bad]))
            measured["all_pairs_minutes_measured"] = (time.monotonic() - started) / 60
    report(
        "blimp",
        len(pairs) / statistics.median(ours_seconds),
        "pairs/s",
        peer="plain loop over transformers, padded batches",
        peer_value=len(pairs) / statistics.median(peer_seconds),
        ratio=statistics.median(theirs / own for own, theirs in zip(ours_seconds, peer_seconds, strict=True)),
        all_pairs_minutes=statistics.median(ours_seconds) * growth / 60,
        **measured,
        largest_difference=float(np.abs(ours - theirs).max()),
        identical=bool(np.allclose(ours, theirs, rtol=0, atol=1e-4)),
        size=parsed.size,
        pairs=len(pairs),
        rounds=ROUNDS,
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
