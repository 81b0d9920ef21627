"""Train 30,522 entries from a million distinct words with Zipf-distributed counts, on one core.

The `tokenizers` trainer takes text, not counts, so as a peer it gets a text of the real novels, and its vocabulary is
compared with ours from the same text: `agreement` is the share of our entries that it has too.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from tests.support.measuring import cpu_seconds, english_paragraphs, report
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from pipelines.contract.schemas import SPECIAL_TOKENS
from pipelines.wordpiece.reference_tokenizer import build_normalizer
from pipelines.wordpiece.trainer import train
from pipelines.wordpiece.word_counts import count_words

SIZE = 30_522
NUM_WORDS = 1_000_000


def synthetic_words() -> tuple[pa.Array, np.ndarray]:
    """A million distinct words spelt from Zipf-distributed syllables, with Zipf-distributed counts."""
    generator = np.random.Generator(np.random.Philox(key=17))
    letters = np.array(list("etaoinshrdlcumwfgypbvkjxqz"))
    syllables = ["".join(generator.choice(letters, size=generator.integers(1, 5))) for _ in range(4000)]
    words: dict[str, None] = {}
    while len(words) < NUM_WORDS:
        ranks = np.minimum(generator.zipf(1.3, size=(200_000, 3)) - 1, len(syllables) - 1)
        lengths = generator.integers(1, 4, size=len(ranks))
        words.update(
            dict.fromkeys("".join(syllables[r] for r in rank[:n]) for rank, n in zip(ranks, lengths, strict=True))
        )
    chosen = list(words)[:NUM_WORDS]
    counts = np.maximum(1, 50_000_000 // np.arange(1, NUM_WORDS + 1)).astype(np.int64)
    return pa.array(chosen), counts


def vocabulary_of_tokenizers(texts: list[str]) -> set[str]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = build_normalizer(True, None)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=SIZE, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return set(tokenizer.get_vocab())


def main() -> None:
    words, counts = synthetic_words()
    train(pa.array(["low", "lower"]), np.array([2, 2]), 15)
    seconds = cpu_seconds(lambda: train(words, counts, SIZE))

    texts = english_paragraphs(60_000_000)
    table = count_words(pa.array(texts), lowercase=True, strip_accents=None)
    ours: list[str] = []
    ours_seconds = cpu_seconds(
        lambda: ours.extend(train(table["word"].combine_chunks(), table["count"].to_numpy(), SIZE))
    )
    theirs: set[str] = set()
    peer_seconds = cpu_seconds(lambda: theirs.update(vocabulary_of_tokenizers(texts)))
    report(
        "vocabulary",
        seconds,
        "s for 1 M distinct words",
        peer="tokenizers WordPieceTrainer, on the text (its time includes counting)",
        peer_value=peer_seconds,
        novels_seconds=ours_seconds,
        ratio=peer_seconds / ours_seconds,
        agreement=len(theirs & set(ours)) / len(ours),
        identical=False,
    )


if __name__ == "__main__":
    main()
