"""Reads CoNLL column files: one word per row, columns separated by spaces or tabs, sentences by empty lines."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from training.tagging.schemes import (
    OUTSIDE,
    PREFIXES,
    TOKENS,
    Scheme,
    converted,
    departures,
    detected_scheme,
    is_label,
)

DOCUMENT_START = "-DOCSTART-"
COMMENT = "#"

_SPACES = re.compile(" +")
_CONLL_U_COLUMNS, _CONLL_U_NO_WORD = 10, re.compile(r"\d+[-.]\d+")


@dataclass(frozen=True)
class TaggedSentence:
    """Words with their labels, in IOB2 or plain. document: number of its document in the file, counted from 0."""

    words: tuple[str, ...]
    labels: tuple[str, ...]
    document: int


@dataclass(frozen=True)
class TaggedText:
    """One file.

    scheme: of the file. irregular_labels: number of labels that deviate from that scheme.
    has_documents: whether there are -DOCSTART- rows. separator: between its columns. example: the first label other
    than O, with file and line. left_out: rows of CoNLL-U that are not words.
    """

    path: str
    sentences: tuple[TaggedSentence, ...]
    scheme: Scheme | Literal["tokens"]
    irregular_labels: int
    has_documents: bool
    separator: str
    example: str = ""
    left_out: int = 0

    @property
    def num_words(self) -> int:
        return sum(len(sentence.words) for sentence in self.sentences)

    @property
    def is_plain(self) -> bool:
        """Whether its labels mark no spans."""
        return self.scheme == TOKENS

    @property
    def types(self) -> list[str]:
        """Types of its spans, or its plain labels, sorted."""
        labels = {label for sentence in self.sentences for label in sentence.labels}
        return sorted(labels if self.is_plain else {label[2:] for label in labels - {OUTSIDE}})

    def in_words(self) -> str:
        """A summary line: counts, scheme, and irregular labels."""
        labels = f"{len(self.types):,} plain labels" if self.is_plain else f"labels in {self.scheme}"
        line = f"{self.path}: {len(self.sentences):,} sentences, {self.num_words:,} words, {labels}"
        if self.left_out:
            line += f"; {self.left_out:,} rows of CoNLL-U for several words or for none are left out"
        if self.irregular_labels:
            line += f" except {self.irregular_labels:,}, which are read as by conlleval"
        return line


@dataclass(frozen=True)
class _Row:
    number: int
    word: str
    label: str


def read_conll(
    path: str, token_column: int, label_column: int, scheme: Literal["auto", "tokens"] | Scheme
) -> TaggedText:
    """Read a file and convert its labels to IOB2, unless they are plain.

    If the first word's row contains a tab, columns are separated by single tabs, otherwise by runs of spaces.
    -DOCSTART- rows start a document and are not sentences. A row that starts with # before a sentence's first word is
    a comment unless it has all columns and, in the label column, a span label or one that other rows have: so
    "# NN I-NP O" is a word. Rows of CoNLL-U for multiword tokens and empty nodes are left out and counted.
    Irregular labels, such as I- after O in IOB2, are counted and read as by conlleval.

    Args:
        path: UTF-8, with or without byte-order mark; lines end in LF, CR or CRLF.
        token_column, label_column: counted from 0, or from the end with -1, -2 ...
        scheme: label scheme; `auto` detects it (training/tagging/schemes.py, detected_scheme), and takes labels as
            plain if none of the file is a span label or O.

    Raises:
        InputError: the file is missing, not UTF-8 or without a sentence, a row has another number of columns or an
            empty word, or a label is not one of the scheme.
    """
    lines = _lines(path)
    separator = _separator(lines)
    sentences: list[list[_Row]] = []
    documents: list[int] = []
    document, has_documents = 0, False
    for found in _sentences(path, lines, separator, token_column, label_column):
        if found is None:
            document, has_documents = document + 1, True
        else:
            sentences.append(found)
            documents.append(document)
    if not sentences:
        raise InputError(f"{path}: has no sentences; expected rows with a word and its label, an empty line after each")
    labels = [[row.label for row in rows] for rows in sentences]
    example = _example(path, sentences)
    left_out = sum(_is_no_word(_columns(line, separator)) for line in lines)
    if scheme == TOKENS or (scheme == "auto" and not any(is_label(label) for own in labels for label in own)):
        plain = (
            TaggedSentence(tuple(row.word for row in rows), tuple(own), number)
            for rows, own, number in zip(sentences, labels, documents, strict=True)
        )
        return TaggedText(path, tuple(plain), TOKENS, 0, has_documents, separator, example, left_out)
    _require_span_labels(path, sentences, label_column)
    found_scheme = detected_scheme(labels) if scheme == "auto" else scheme
    _require_prefixes(path, sentences, found_scheme)
    return TaggedText(
        path,
        tuple(
            TaggedSentence(tuple(row.word for row in rows), tuple(converted(own, "iob2")), number)
            for rows, own, number in zip(sentences, labels, documents, strict=True)
        ),
        found_scheme,
        sum(len(departures(own, found_scheme)) for own in labels),
        has_documents,
        separator,
        example,
        left_out,
    )


def _lines(path: str) -> list[str]:
    if storage.file_size_bytes(path) is None:
        raise InputError(f"{path}: missing; expected a CoNLL file with a word and its label in each row")
    try:
        text = storage.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; convert it") from error
    # Not splitlines(): a word may contain U+2028 and similar characters.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _sentences(
    path: str, lines: list[str], separator: str, token_column: int, label_column: int
) -> Iterator[list[_Row] | None]:
    """Sentences in order, and None where a document starts."""
    rows: list[_Row] = []
    width = _width(lines, separator)
    known = _labels_of_words(lines, separator, width, label_column)
    for number, line in enumerate(lines, start=1):
        columns = _columns(line, separator)
        starts_document = bool(columns) and columns[0].startswith(DOCUMENT_START)
        if rows and (starts_document or not columns):
            yield rows
            rows = []
        if starts_document:
            yield None
        elif (
            columns and not _is_no_word(columns) and not (not rows and _is_comment(columns, width, label_column, known))
        ):
            rows.append(_row(path, number, columns, width, token_column, label_column))
    if rows:
        yield rows


def _separator(lines: list[str]) -> str:
    for line in lines:
        if line.strip(" \t") and not line.startswith((DOCUMENT_START, COMMENT)):
            return "\t" if "\t" in line else " "
    return " "


def _columns(line: str, separator: str) -> list[str]:
    if not line.strip(" \t"):
        return []
    return line.split("\t") if separator == "\t" else _SPACES.split(line.strip(" "))


def _width(lines: list[str], separator: str) -> int:
    """Columns of the first row that can only be a word."""
    for line in lines:
        columns = _columns(line, separator)
        if columns and not columns[0].startswith((DOCUMENT_START, COMMENT)):
            return len(columns)
    return 0


def _is_no_word(columns: list[str]) -> bool:
    """Whether it is a row of CoNLL-U for a multiword token ("1-2") or an empty node ("8.1")."""
    return len(columns) == _CONLL_U_COLUMNS and _CONLL_U_NO_WORD.fullmatch(columns[0]) is not None


def _example(path: str, sentences: list[list[_Row]]) -> str:
    rows = [row for rows in sentences for row in rows]
    row = next((row for row in rows if row.label != OUTSIDE), rows[0])
    return f"{path}:{row.number}: label {row.label!r}"


def _labels_of_words(lines: list[str], separator: str, width: int, label_column: int) -> set[str]:
    """The labels of the rows that can only be words."""
    if not -width <= label_column < width:
        return set()
    rows = (_columns(line, separator) for line in lines if not line.startswith((DOCUMENT_START, COMMENT)))
    return {columns[label_column] for columns in rows if len(columns) == width}


def _is_comment(columns: list[str], width: int, label_column: int, known: Collection[str]) -> bool:
    if not columns[0].startswith(COMMENT):
        return False
    if len(columns) != width or not -width <= label_column < width:
        return True
    return not (is_label(columns[label_column]) or columns[label_column] in known)


def _row(path: str, number: int, columns: list[str], width: int, token_column: int, label_column: int) -> _Row:
    if len(columns) != width:
        raise InputError(f"{path}:{number}: has {len(columns)} columns, but the rows before it have {width}")
    for name, column in (("token_column", token_column), ("label_column", label_column)):
        if not -width <= column < width:
            raise InputError(f"{path}:{number}: has {width} columns, so there is no {name} = {column}; change it")
    if token_column % width == label_column % width:
        raise InputError(
            f"{path}:{number}: has {width} columns, so token_column = {token_column} and label_column = "
            f"{label_column} are the same; change one"
        )
    word, label = columns[token_column], columns[label_column]
    if not word:
        raise InputError(f"{path}:{number}: its word is empty; columns are separated by single tabs here")
    if not label:
        raise InputError(f"{path}:{number}: its label is empty; columns are separated by single tabs here")
    return _Row(number, word, label)


def _require_span_labels(path: str, sentences: list[list[_Row]], label_column: int) -> None:
    for rows in sentences:
        for row in rows:
            if not is_label(row.label):
                raise InputError(
                    f"{path}:{row.number}: label {row.label!r} is none of O, B-type, I-type, E-type, S-type; is "
                    f"label_column = {label_column} right? Set scheme = 'tokens' for plain labels"
                )


def _require_prefixes(path: str, sentences: list[list[_Row]], scheme: Scheme) -> None:
    for rows in sentences:
        for row in rows:
            if not is_label(row.label, PREFIXES[scheme]):
                raise InputError(
                    f"{path}:{row.number}: label {row.label!r} is none of {scheme}; set scheme = 'auto' or 'bioes'"
                )
