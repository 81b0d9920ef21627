"""What became of a corpus: the closing lines of the documents job; a corpus that gave nothing is an error.

Reads only a manifest's statistics, so any later command can print the lines again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest
from pipelines.contract.shown_text import shown
from pipelines.contract.workspace import DOCUMENTS, REJECTS_NAME
from pipelines.documents.rejects import REJECTS_SHOWN
from pipelines.filtering.decontamination import CONTAMINATED
from pipelines.filtering.quality import QUALITY_PREFIX
from pipelines.settings.documents import DocumentsConfig
from pipelines.settings.sentence_languages import rules_of
from pipelines.statistics.preprocessing import DocumentsStatistics

_DETAIL_CHARACTERS = 120
_SOURCE_CHARACTERS = 80
_DOCUMENTS_PER_SHARD = 10
"""With this many documents, a shard gets a single one at most once in a thousand times."""

# Rejected by design: neither the corpus nor the recipe is at fault.
_EXPECTED = {"duplicate", "near-duplicate", "redirect", "not-an-article", "not-wikitext", "title-only", "empty"} | {
    "no-docstrings",
    "not-a-page",
    "no-success",
    CONTAMINATED,
}
_REMEDIES = {
    "undecodable": "set the source's encoding, such as encoding = 'latin-1' or 'cp1251'",
    "binary": "restrict inputs to text files, or set encoding = 'utf-16-le' or 'utf-16-be'",
    "archive": "unpack the archives, and point inputs at the texts in them",
    "bad-json": "format = 'jsonl' needs one JSON object per line, not an array; or set another format",
    "bad-csv": "set quoting = 'none' if quotation marks are plain characters in these files",
    "wrong-fields": "set format = 'csv' or 'tsv' by the files' delimiter, or repair the rows",
    "missing-field": "set text_field",
    "not-a-string": "set text_field",
    "stray-text": "set another format, or cut the files between articles",
    "not-mediawiki": "set another format",
    "too-large": "raise max_record_bytes, or set document_separator = 'blank-line'",
    "too-short": "lower documents.min_characters",
    "too-few-sentences": "lower documents.min_sentences",
    "language": "add to documents.languages",
    CONTAMINATED: "take evaluation data out of documents.sources, or raise documents.decontamination.words_per_gram",
    "truncated": "get the files again, they are cut off",
    "damaged": "get the files again, they are damaged",
    "outside-link": "add the targets of the links to inputs",
    "broken-link": "fix the links",
    "name-not-utf-8": "rename the files",
    "unreadable": "grant this user access to the directories",
}


def require_documents(statistics: DocumentsStatistics, config: Mapping[str, Any]) -> None:
    """Check the statistics before a stage counts as complete.

    Raises:
        InputError: no document was kept, or none to train on.
    """
    read, kept, rejected = statistics.documents_read, statistics.documents_kept, statistics.documents_rejected
    if not kept:
        examples = list(_first_rejects(statistics))
        if not examples:
            raise InputError("documents: the inputs hold no text; point documents.sources at other files")
        shown_rejects = "; ".join(examples)
        raise InputError(
            f"documents: none of the {read:,} texts read was kept, {rejected:,} were rejected. First of them: "
            f"{shown_rejects}. {_remedies(statistics)}"
        )
    if not statistics.train_documents:
        others = f". Of {read:,} texts read, {rejected:,} were rejected: {'; '.join(_first_rejects(statistics))}"
        raise InputError(
            f"documents: all of the {kept:,} documents kept are held out (documents.heldout_share = "
            f"{config['heldout_share']:g}), none is left to train on; lower it, or add documents"
            f"{others if rejected else ''}"
        )


def closing_lines(manifest: Manifest, config: DocumentsConfig) -> list[str]:
    """The closing line, and one line per warning."""
    statistics = manifest.statistics_as(DocumentsStatistics)
    read, kept = statistics.documents_read, statistics.documents_kept
    train, heldout = statistics.train_documents, statistics.heldout_documents
    line = f"{DOCUMENTS}: {read:,} read, {kept:,} kept ({train:,} to train on, {heldout:,} held out)"
    return [
        f"{line}, {statistics.documents_rejected:,} rejected{_reasons(statistics)}",
        *_decontamination(statistics),
        *(f"{DOCUMENTS}: warning: {text}" for text in _warnings(manifest, statistics, config)),
    ]


def _reasons(statistics: DocumentsStatistics) -> str:
    counts = _commonest(statistics)
    if not counts:
        return ""
    words = [f"{count:,} {reason}{_example(statistics, reason)}" for reason, count in counts[:REJECTS_SHOWN]]
    if left := counts[REJECTS_SHOWN:]:
        words.append(f"{sum(count for _, count in left):,} for {len(left)} other reasons")
    return f": {', '.join(words)}; all are in {REJECTS_NAME}"


def _decontamination(statistics: DocumentsStatistics) -> Iterator[str]:
    found = statistics.decontamination
    if found is not None:
        by_file = ", ".join(f"{count:,} for {shown(file)}" for file, count in found.documents_by_file.items())
        total = sum(found.documents_by_file.values())
        yield (
            f"{DOCUMENTS}: {total:,} documents share words with evaluation data and were dropped"
            f"{': ' if by_file else ''}{by_file}"
        )


def _example(statistics: DocumentsStatistics, reason: str) -> str:
    examples = statistics.first_rejects.get(reason)
    return f" ({_in_words(*examples[0])})" if examples else ""


def _in_words(source: str, detail: str) -> str:
    return f"{shown(source, _SOURCE_CHARACTERS)}: {shown(detail, _DETAIL_CHARACTERS)}"


def _commonest(statistics: DocumentsStatistics) -> list[tuple[str, int]]:
    return sorted(statistics.rejected_by_reason.items(), key=lambda item: (-item[1], item[0]))


def _first_rejects(statistics: DocumentsStatistics) -> Iterator[str]:
    """Three rejects: one of each of the most common reasons, or more of one if there are fewer reasons."""
    reasons = [reason for reason, _ in _commonest(statistics)]
    found = [
        (reason, example)
        for place in range(REJECTS_SHOWN)
        for reason in reasons
        for example in statistics.first_rejects.get(reason, [])[place : place + 1]
    ]
    for reason, example in found[:REJECTS_SHOWN]:
        yield f"{_in_words(*example)} [{reason}]"


def _remedies(statistics: DocumentsStatistics) -> str:
    found = [remedy for reason, _ in _commonest(statistics)[:REJECTS_SHOWN] if (remedy := _remedy(reason))]
    return "Remedy: " + "; ".join(dict.fromkeys(found)) if found else "Point documents.sources at other files"


def _remedy(reason: str) -> str | None:
    if reason.startswith(QUALITY_PREFIX):
        return f"change documents.quality.limits.{reason.removeprefix(QUALITY_PREFIX)}, or choose other rules"
    return _REMEDIES.get(reason)


def _is_fault(reason: str) -> bool:
    return reason not in _EXPECTED and not reason.startswith(QUALITY_PREFIX)


def _warnings(manifest: Manifest, statistics: DocumentsStatistics, config: DocumentsConfig) -> Iterator[str]:
    read = statistics.documents_read
    faults = sum(count for reason, count in _commonest(statistics) if _is_fault(reason))
    if faults > config.warn_rejected_share * read:
        yield (
            f"{faults:,} of {read:,} texts ({faults / read:.1%}) were rejected for a fault, more than "
            f"documents.warn_rejected_share = {config.warn_rejected_share:g}. {_remedies(statistics)}"
        )
    for index, source in enumerate(config.sources):
        if rules_of(source.language) is None:
            yield (
                f"documents.sources.{index}.language = {source.language!r} has no sentence rules of its own; the "
                "general ones were used"
            )
    if num_cut := statistics.cleaning.get("sentences_cut"):
        yield f"{num_cut:,} times no sentence ended within 10,000 characters, and it was cut there"
    yield from _what_later_stages_lack(manifest, statistics, config)


def _what_later_stages_lack(
    manifest: Manifest, statistics: DocumentsStatistics, config: DocumentsConfig
) -> Iterator[str]:
    train = statistics.train_documents
    rows = [file.rows for file in manifest.files_of("train")]
    singles, empty = rows.count(1), rows.count(0)
    if singles:
        best = max(1, train // _DOCUMENTS_PER_SHARD)
        remedy = f"set documents.num_shards = {best} or add documents" if best < len(rows) else "add documents"
        more = f", and {empty:,} none" if empty else ""
        yield (
            f"{singles:,} of {len(rows):,} training shards hold a single document{more}: random next sentences come "
            f"from the same shard, so these get none (examples.next_sentence); {remedy}"
        )
    elif empty:
        yield f"{empty:,} of {len(rows):,} training shards hold no document; lower documents.num_shards"
    heldout = statistics.heldout_documents
    lacks = "pre-training gets no held-out loss and the word-order task no dev sentences"
    if not heldout:
        yield (
            f"no document is held out (documents.heldout_share = {config.heldout_share:g}), so {lacks}; raise it, or "
            "add documents"
        )
