"""Small portions of a workspace for its report: rejected texts, vocabulary entries, masked examples, curves.

All reads are limited to a few megabytes, whatever the size of the run, and results are plain JSON values. Texts come
from corpora, so they are converted to valid UTF-8 without control characters, and truncated.
"""

from __future__ import annotations

import gzip
import json
import math
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import pyarrow as pa

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest
from pipelines.contract.schemas import CONTINUATION, MASK, SPECIAL_TOKENS
from pipelines.contract.workspace import METRICS_NAME, REJECTS_NAME, VOCABULARY_NAME, length_directory
from pipelines.statistics.metrics import HELDOUT_PREFIX

Facts = dict[str, Any]
ItemT = TypeVar("ItemT")

TEXT_CHARACTERS = 160
READABLE_LENGTH = 128
"""The longest available length up to this one is shown: longer examples are hard to read."""

_REJECTS_BYTES = 16 << 20
_METRICS_BYTES = 8 << 20
_METRICS_BLOCKS = 64
_POINTS = 240
_SIGNIFICANT_DIGITS = 6
_ROWS_SEARCHED = 64
_ROWS_COUNTED = 1_000
_SHOWN = 24
_LONG_PIECE_CHARACTERS = 4
_SPLIT_PIECES = 3


def sampled(read: Callable[[], Facts]) -> Facts:
    """The result of `read`, or {"problem": reason}: the report must not fail a finished run."""
    try:
        return read()
    except (OSError, ValueError, KeyError, EOFError, pa.ArrowException, zlib.error) as error:
        return {"problem": printable(f"{type(error).__name__}: {error}")}


def printable(text: str, characters: int = TEXT_CHARACTERS) -> str:
    """Foreign text as valid UTF-8 on one line, control characters replaced by U+FFFD, truncated to `characters`."""
    kept = text[: characters + 1]
    plain = "".join(_plain_character(character) for character in kept)
    return plain[:characters] + "…" if len(text) > characters else plain


def _plain_character(character: str) -> str:
    if character in "\t\n\r":
        return " "
    return "\N{REPLACEMENT CHARACTER}" if unicodedata.category(character) in ("Cc", "Cs") else character


def reject_samples(directory: str, reasons: Collection[str]) -> Facts:
    """The first rejected text of each reason, by reason: {"source", "detail"}; reading stops when all are found."""
    wanted, found = set(reasons), dict[str, Facts]()
    filesystem, path = storage.filesystem_of(storage.join(directory, REJECTS_NAME))
    read_bytes = 0
    with filesystem.open_input_stream(path, compression=None) as packed, gzip.GzipFile(fileobj=packed) as lines:
        for raw in lines:
            read_bytes += len(raw)
            if wanted <= found.keys() or read_bytes > _REJECTS_BYTES:
                break
            reject = json.loads(raw)
            if reject["reason"] not in found:
                found[reject["reason"]] = {key: printable(str(reject[key])) for key in ("source", "detail")}
    return {reason: found[reason] for reason in sorted(wanted & found.keys())}


def read_vocabulary(directory: str) -> list[str]:
    """The entries of vocab.txt, by id."""
    return storage.read_bytes(storage.join(directory, VOCABULARY_NAME)).decode().split("\n")[:-1]


def vocabulary_sample(tokens: Sequence[str]) -> Facts:
    """Number of entries of each kind, with samples of each."""
    entries = [token for token in tokens if token not in SPECIAL_TOKENS and not token.startswith("[unused")]
    continuing = [token for token in entries if token.startswith(CONTINUATION) and len(token) > len(CONTINUATION)]
    beginning = [token for token in entries if not token.startswith(CONTINUATION) or len(token) == len(CONTINUATION)]
    words = [token for token in beginning if len(token) > 1]
    pieces = [token for token in continuing if len(token) > len(CONTINUATION) + 1]
    long_pieces = [token for token in pieces if len(token) >= len(CONTINUATION) + _LONG_PIECE_CHARACTERS]
    return {
        "entries": len(tokens),
        "special": len(tokens) - len(entries),
        "characters": len(beginning) - len(words) + len(continuing) - len(pieces),
        "words": len(words),
        "pieces": len(pieces),
        "longest": _shown(sorted((word for word in words if word.isalpha()), key=len, reverse=True)),
        "pieces_learnt_first": _shown(long_pieces or pieces),
        "learnt_last": _shown(list(reversed(words))),
    }


def _shown(tokens: Sequence[str]) -> list[str]:
    return [printable(token, 60) for token in tokens[:_SHOWN]]


def example_samples(directory: str, manifest: Manifest, tokens: Sequence[str]) -> Facts:
    """Masked examples to show as text, and words of one file: frequent ones, and those split into pieces."""
    schema, rows = _rows(storage.join(directory, _readable_file(manifest)))
    metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    words = _words(rows, tokens)
    frequent = [word for word in words if len(word) == 1 and len(word[0]) > 1 and word[0].isalpha()]
    split = [word for word in words if len(word) >= _SPLIT_PIECES and all(part.isalpha() for part in word)]
    return {
        "max_seq_length": int(metadata.get("clozeworks.max_seq_length", 0)) or None,
        "masking": metadata.get("clozeworks.masking", "static"),
        "has_pairs": metadata.get("clozeworks.next_sentence", "true") == "true",
        "rows_counted": len(rows),
        "frequent_words": _shown([word for (word,) in frequent]),
        "split_words": [[printable(part, 60) for part in word] for word in split[: _SHOWN // 2]],
        "examples": _telling_examples(rows[:_ROWS_SEARCHED], tokens),
    }


def _readable_file(manifest: Manifest) -> str:
    directories = {file.name.rpartition("/")[0] for file in manifest.files}
    # Rows of the section's own set.
    lengths = sorted(int(name.removeprefix("length")) for name in directories if "/" not in name)
    readable = [length for length in lengths if length <= READABLE_LENGTH]
    files = manifest.files_of("train", length_directory((readable or lengths)[-1])) if lengths else []
    if not files:
        raise InputError("the manifest lists no training examples")
    return files[-1].name


def _rows(uri: str) -> tuple[pa.Schema, list[Facts]]:
    """Schema and first rows of a file of examples, of which only these rows are read."""
    with storage.open_seekable(uri) as stream:
        file = pa.ipc.open_file(stream)
        rows: list[Facts] = file.get_batch(0).slice(0, _ROWS_COUNTED).to_pylist() if file.num_record_batches else []
        return file.schema, rows


def _words(rows: Sequence[Facts], tokens: Sequence[str]) -> list[tuple[str, ...]]:
    """The words of these rows, unmasked, as pieces without their mark; by frequency, then by first occurrence."""
    counts: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        texts = [_token(tokens, identifier) for identifier in _unmasked(row)]
        starts = [place for place, text in enumerate(texts) if not text.startswith(CONTINUATION)]
        for begin, end in pairwise([*starts, len(texts)]):
            if texts[begin] not in SPECIAL_TOKENS:
                counts[(texts[begin], *(text.removeprefix(CONTINUATION) for text in texts[begin + 1 : end]))] += 1
    return [word for word, _ in counts.most_common()]


def _telling_examples(rows: Sequence[Facts], tokens: Sequence[str]) -> list[Facts]:
    """For each next-sentence label the first row with the most kinds of masks.

    A token is [model input, original], the latter None unless the token is to be predicted.
    """
    best: dict[int, Facts] = {}
    kinds: dict[int, int] = {}
    for row in rows:
        originals: dict[int, int] = dict(zip(row["masked_lm_positions"], row["masked_lm_ids"], strict=True))
        shown = [
            [
                printable(_token(tokens, identifier), 60),
                printable(_token(tokens, originals[place]), 60) if place in originals else None,
            ]
            for place, identifier in enumerate(row["input_ids"])
        ]
        label = row["next_sentence_label"]
        found = len({mask_kind(str(text), original) for text, original in shown})
        if found > kinds.get(label, 0):
            kinds[label] = found
            best[label] = {"tokens": shown, "segment_b_start": row["segment_b_start"], "is_random_next": label}
    return [best[label] for label in sorted(best)]


def mask_kind(text: str, original: str | None) -> str | None:
    """How a token to predict was masked: "mask", "kept" or "random"; None for other tokens."""
    if original is None:
        return None
    return "mask" if text == MASK else "kept" if text == original else "random"


def _unmasked(row: Facts) -> list[int]:
    identifiers = list(row["input_ids"])
    for place, identifier in zip(row["masked_lm_positions"], row["masked_lm_ids"], strict=True):
        identifiers[place] = identifier
    return identifiers


def _token(tokens: Sequence[str], identifier: int) -> str:
    if identifier >= len(tokens):
        raise InputError(f"an example holds id {identifier}, the vocabulary only {len(tokens)} entries")
    return tokens[identifier]


def curves(directory: str, names: Collection[str]) -> Facts:
    """Curves of a run by these names, each [[step, value], ...] of at most some hundred points, the last one included.

    Of a file larger than 8 MB, evenly spaced blocks are read.
    """
    series: dict[str, list[list[float]]] = {f"{prefix}{name}": [] for name in names for prefix in ("", HELDOUT_PREFIX)}
    for line in _lines(storage.join(directory, METRICS_NAME)):
        record = json.loads(line)
        for name in series.keys() & record.keys():
            if isinstance(record[name], int | float) and math.isfinite(record[name]):
                series[name].append([record["step"], float(f"{record[name]:.{_SIGNIFICANT_DIGITS}g}")])
    return {name: thinned(sorted(points), _POINTS) for name, points in sorted(series.items()) if points}


def thinned(items: Sequence[ItemT], count: int) -> list[ItemT]:
    """At most `count` items, evenly spaced, including the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[place * (len(items) - 1) // (count - 1)] for place in range(count)]


def _lines(uri: str) -> Iterator[bytes]:
    size_bytes = storage.file_size_bytes(uri)
    if size_bytes is None:
        raise FileNotFoundError(uri)
    if size_bytes <= _METRICS_BYTES:
        yield from storage.read_bytes(uri).splitlines()
        return
    filesystem, path = storage.filesystem_of(uri)
    block_bytes = _METRICS_BYTES // _METRICS_BLOCKS
    with filesystem.open_input_file(path) as stream:
        for block in range(_METRICS_BLOCKS):
            stream.seek(block * (size_bytes - block_bytes) // (_METRICS_BLOCKS - 1))
            # Complete lines only: all blocks but the first and the last start and end anywhere.
            lines = bytes(stream.read(block_bytes)).split(b"\n")
            yield from (line for line in lines[block > 0 : -1] if line)
