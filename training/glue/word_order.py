"""A demonstration task in CoLA's format: is this sentence's word order intact?

Sentences are from held-out documents, which pre-training never saw. In half of them (label 0) a run of consecutive
words is reordered. The selection and reordering depend on their text, their document and the seed only; a document's
sentences are all in train or all in dev, and no sentence occurs twice.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, record_of, write_manifest
from pipelines.results.builds import discard_build, finish_exchange, install_build, open_build
from pipelines.results.locks import workspace_lock
from pipelines.results.marks import building_directory
from training.data.ordering import keyed_permutation, keyed_seed
from training.settings.glue import WORD_ORDER, WordOrderConfig

_VERSION = 1
_DEV_SHARE = 5
"""One document in this many is assigned to dev."""
SOURCE = "held-out"

Row = tuple[int, str]

_LOCK_SECONDS = 60.0
"""Another process may be preparing the same task, which takes seconds."""


def prepare_word_order(
    directory: str, documents_directory: str, documents: Manifest, config: WordOrderConfig, code_version: str
) -> None:
    """Write `directory`/word-order/train.tsv and dev.tsv with a manifest, unless they exist and match.

    Raises:
        InputError: the held-out documents have too few suitable sentences.
    """
    target = storage.join(directory, WORD_ORDER)
    key = StageKey(WORD_ORDER, _VERSION, config, {"documents": documents.digest})
    if key.difference(target) is None:
        return
    with workspace_lock(directory, WORD_ORDER, wait_seconds=_LOCK_SECONDS):
        finish_exchange(target)
        if key.difference(target) is not None:
            _write_word_order(target, key, documents_directory, documents, config, code_version)


def _write_word_order(
    directory: str,
    key: StageKey,
    documents_directory: str,
    documents: Manifest,
    config: WordOrderConfig,
    code_version: str,
) -> None:
    candidates: dict[str, list[tuple[int, str]]] = {"train": [], "dev": []}
    for split, sentence in _heldout_sentences(documents_directory, documents, config):
        candidates[split].append((keyed_seed(config.seed, "take", sentence), sentence))
    limits = {"train": config.max_train_examples, "dev": config.max_dev_examples}
    texts: dict[str, list[Row]] = {}
    for split, limit in limits.items():
        rows = labelled_rows([sentence for _, sentence in sorted(candidates[split])], limit, config)
        if len(rows) < 2:
            raise InputError(
                f"{documents_directory}: held-out documents give {len(rows)} {split} sentences of {config.min_words} "
                f"to {config.max_words} words for {WORD_ORDER}; raise documents.heldout_share or add more text"
            )
        texts[split] = rows
    discard_build(directory)
    open_build(directory, key)
    building = building_directory(directory)
    records = []
    for split, rows in texts.items():
        text = "".join(f"{SOURCE}\t{label}\t\t{sentence}\n" for label, sentence in rows)
        storage.write_bytes(storage.join(building, f"{split}.tsv"), text.encode())
        records.append(record_of(building, f"{split}.tsv", len(rows)))
    write_manifest(building, key.manifest(records, {}, code_version))
    install_build(directory, key)


def _heldout_sentences(directory: str, documents: Manifest, config: WordOrderConfig) -> Iterator[tuple[str, str]]:
    """Distinct sentences of suitable length, with the split of the document that they first occur in."""
    seen: set[str] = set()
    for file in documents.files_of("heldout"):
        uri = storage.join(directory, file.name)
        try:
            with storage.open_seekable(uri) as source:
                table = pa.ipc.open_file(source).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{uri}: not a readable Arrow file ({error}); rebuild the documents stage") from error
        for doc_id, sentences in zip(table["doc_id"].to_pylist(), table["sentences"].to_pylist(), strict=True):
            split = "dev" if keyed_seed(config.seed, "split", doc_id.hex()) % _DEV_SHARE == 0 else "train"
            for sentence in sentences:
                words = sentence.split()
                text = " ".join(words)
                if config.min_words <= len(words) <= config.max_words and text not in seen:
                    seen.add(text)
                    yield split, text


def labelled_rows(sentences: list[str], limit: int, config: WordOrderConfig) -> list[Row]:
    """Balanced rows (label, sentence), at most `limit`: label 1 is intact, 0 damaged."""
    rows: list[Row] = []
    for sentence in sentences:
        if len(rows) >= limit - limit % 2:
            break
        if len(rows) % 2 == 0:
            rows.append((1, sentence))
        elif (damaged := damage(sentence, config)) is not None:
            rows.append((0, damaged))
    return rows[: len(rows) - len(rows) % 2]


def damage(sentence: str, config: WordOrderConfig) -> str | None:
    """The sentence with `damaged_words` consecutive words reordered; None if no order differs."""
    words = sentence.split()
    starts = keyed_permutation(len(words) - config.damaged_words + 1, config.seed, "where", sentence)
    for start in starts:
        window = words[start : start + config.damaged_words]
        for attempt in range(8):
            order = keyed_permutation(len(window), config.seed, "order", sentence, attempt)
            shuffled = [window[index] for index in order]
            if shuffled != window:
                return " ".join([*words[:start], *shuffled, *words[start + config.damaged_words :]])
    return None
