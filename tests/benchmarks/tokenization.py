"""WordPiece ids of English text, one thread: ours against `tokenizers.encode_batch_fast`, ids compared.

`value` and `ratio` are with the table as a worker has it after its first 10 MB; `cold_ratio` starts from nothing.
"""

from __future__ import annotations

import statistics

import numpy as np
import pyarrow as pa
from tests.support.measuring import cpu_seconds, english_paragraphs, report

from pipelines.wordpiece.reference_tokenizer import build_tokenizer
from pipelines.wordpiece.tokenizer import WordPieceTokenizer
from pipelines.wordpiece.trainer import train
from pipelines.wordpiece.word_counts import count_words

RUNS = 5
BATCH_TEXTS = 4096
PEER_TEXTS = 12_000


def seconds_to_tokenize(tokenizer: WordPieceTokenizer, batches: list[pa.Array]) -> float:
    return cpu_seconds(lambda: [tokenizer.tokenize(batch) for batch in batches])


def main() -> None:
    texts = english_paragraphs(60_000_000)
    table = count_words(pa.array(texts), lowercase=True, strip_accents=None)
    vocabulary = train(table["word"].combine_chunks(), table["count"].to_numpy(), 30_522)
    peer = build_tokenizer(vocabulary, lowercase=True, strip_accents=None)
    peer.encode_special_tokens = True

    sizes = np.cumsum([len(text.encode()) for text in texts])
    warm_end = int(np.searchsorted(sizes, 10_000_000))
    batches = [pa.array(texts[start : start + BATCH_TEXTS]) for start in range(0, len(texts), BATCH_TEXTS)]
    rest = [pa.array(texts[start : start + BATCH_TEXTS]) for start in range(warm_end, len(texts), BATCH_TEXTS)]
    all_bytes, rest_bytes = int(sizes[-1]), int(sizes[-1] - sizes[warm_end - 1])
    sample = texts[warm_end : warm_end + PEER_TEXTS]
    sample_bytes = sum(len(text.encode()) for text in sample)

    warm, cold, peers = [], [], []
    for _ in range(RUNS):
        fresh, ours = (WordPieceTokenizer(vocabulary, lowercase=True) for _ in range(2))
        cold.append(all_bytes / seconds_to_tokenize(fresh, batches) / 1e6)
        ours.tokenize(pa.array(texts[:warm_end]))
        warm.append(rest_bytes / seconds_to_tokenize(ours, rest) / 1e6)
        seconds = cpu_seconds(lambda: peer.encode_batch_fast(sample, add_special_tokens=False))
        peers.append(sample_bytes / seconds / 1e6)
    expected = [number for one in peer.encode_batch_fast(texts, add_special_tokens=False) for number in one.ids]
    identical = WordPieceTokenizer(vocabulary, True).tokenize(pa.array(texts)).input_ids.tolist() == expected
    report(
        "tokenization",
        statistics.median(warm),
        "MB/s",
        peer="tokenizers.encode_batch_fast",
        peer_value=statistics.median(peers),
        ratio=statistics.median(one / other for one, other in zip(warm, peers, strict=True)),
        cold_value=statistics.median(cold),
        cold_ratio=statistics.median(one / other for one, other in zip(cold, peers, strict=True)),
        identical=identical,
        tokens=len(expected),
        bytes=all_bytes,
        runs=RUNS,
    )


if __name__ == "__main__":
    main()
