"""Reads SQuAD's JSON files, 1.1 and 2.0, and refuses inconsistent ones.

Offsets count Unicode characters of the context, as in Python.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from pipelines.contract import storage
from pipelines.contract.errors import InputError


@dataclass(frozen=True)
class Answer:
    """An annotated answer; `text` is at character `start` of the context."""

    start: int
    text: str

    @property
    def end(self) -> int:
        """The character after the last one."""
        return self.start + len(self.text)


@dataclass(frozen=True)
class Question:
    """One question. context: number of its paragraph in the file. answers: empty if it is impossible to answer."""

    id: str
    article: str
    context: int
    text: str
    answers: tuple[Answer, ...]

    @property
    def is_impossible(self) -> bool:
        return not self.answers


@dataclass(frozen=True)
class SquadFile:
    """A complete file: paragraphs' texts, and the questions on them in the file's order."""

    path: str
    contexts: list[str]
    questions: list[Question]

    @property
    def is_version_2(self) -> bool:
        """Whether there is a question without an answer in the text."""
        return any(question.is_impossible for question in self.questions)


def _read_json(path: str) -> dict[str, Any]:
    """The parsed file, of which only the outermost keys are checked.

    Raises:
        InputError: the file is missing, not JSON, or has no list under `data`.
    """
    if storage.file_size_bytes(path) is None:
        raise InputError(f"{path}: missing; expected a SQuAD JSON file")
    try:
        parsed = json.loads(storage.read_bytes(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; expected a SQuAD JSON file") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); expected a SQuAD JSON file") from error
    if not isinstance(parsed, dict) or not isinstance(parsed.get("data"), list):
        raise InputError(f"{path}: no list under 'data'; expected a SQuAD JSON file, version 1.1 or 2.0")
    return parsed


def read_squad(path: str) -> SquadFile:
    """Read and check a file.

    Raises:
        InputError: it is not a SQuAD file, has no questions, an id occurs twice, or an answer is not at its position
            in the context.
    """
    contexts: list[str] = []
    questions: list[Question] = []
    seen: set[str] = set()
    for article_number, article in enumerate(_read_json(path)["data"], start=1):
        title = article.get("title") if isinstance(article, dict) else None
        name = title if isinstance(title, str) else str(article_number)
        for paragraph in _list(article, "paragraphs", f"{path}: article {name!r}"):
            context = _text(paragraph, "context", f"{path}: article {name!r}")
            contexts.append(context)
            for question in _questions(path, name, paragraph, context, len(contexts) - 1):
                if question.id in seen:
                    raise InputError(f"{path}: article {name!r}: question id {question.id!r} occurs twice; rename one")
                seen.add(question.id)
                questions.append(question)
    if not questions:
        raise InputError(f"{path}: has no questions; give a SQuAD file with at least one")
    return SquadFile(path, contexts, questions)


def _questions(path: str, article: str, paragraph: Any, context: str, number: int) -> Iterator[Question]:
    for entry in _list(paragraph, "qas", f"{path}: article {article!r}"):
        identifier = _text(entry, "id", f"{path}: article {article!r}")
        where = f"{path}: article {article!r}, question {identifier}"
        text = _text(entry, "question", where)
        is_impossible = entry.get("is_impossible", False)
        if not isinstance(is_impossible, bool):
            raise InputError(f"{where}: is_impossible = {is_impossible!r} must be true or false")
        entries = entry.get("answers", []) if is_impossible else _list(entry, "answers", where)
        if is_impossible and entries:
            raise InputError(f"{where}: is_impossible, but has answers; remove one of them")
        if not is_impossible and not entries:
            raise InputError(f'{where}: has no answers; add one, or set "is_impossible": true')
        yield Question(identifier, article, number, text, tuple(_answer(each, context, where) for each in entries))


def _answer(entry: Any, context: str, where: str) -> Answer:
    text, start = _text(entry, "text", where), entry.get("answer_start")
    if not isinstance(start, int) or isinstance(start, bool):
        raise InputError(f"{where}: answer_start = {start!r} must be an integer")
    found = context[max(start, 0) : max(start, 0) + len(text)]
    if start < 0 or not text or found != text:
        raise InputError(
            f"{where}: answer {_short(text)} is not at answer_start = {start} of the context, but {_short(found)} is; "
            "offsets count Unicode characters"
        )
    return Answer(start, text)


def _text(entry: Any, key: str, where: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, str) else _missing(key, "text", where)


def _list(entry: Any, key: str, where: str) -> list[Any]:
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, list) else _missing(key, "list", where)


def _missing(key: str, kind: str, where: str) -> NoReturn:
    raise InputError(f"{where}: no {kind} under {key!r}; expected SQuAD's own format")


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
