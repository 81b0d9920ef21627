"""Recover a worker's exception from the text that Beam makes of it.

With every runner, a worker's exception reaches the caller of the pipeline as a RuntimeError that quotes the worker's
traceback. The user error or system error in that text is raised again with its own type.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import re
import traceback

from pipelines.contract.errors import InputError
from pipelines.stores.failures import StoreError

# The last lines of a traceback: `package.module.InputError: message`, at the start of a line.
_EXCEPTION = re.compile(
    r"^(?:RuntimeError: )*(?P<name>[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Iteration|Invalid))"
    r"(?:: (?P<message>.*?))?(?=\n\n|\n\S*Traceback \(most recent|\s*\Z)",
    re.MULTILINE | re.DOTALL,
)
_STEP = re.compile(r" \[while running '[^']*'\]")
_OS_ERROR = re.compile(r"\[Errno (?P<errno>\d+)\] (?P<reason>.*?)(?:: (?P<name>'.*'|\".*\"))?", re.DOTALL)


def first_cause(text: str) -> InputError | OSError | MemoryError | None:
    """The exception to show for a traceback's text: a user error if there is one, else a system error.

    The first of several counts: later ones were raised while it was handled. None if the text holds neither, which
    means a bug.
    """
    found = [_rebuilt(match["name"], match["message"] or "") for match in _EXCEPTION.finditer(text)]
    for kind in (InputError, (OSError, MemoryError)):
        for error in found:
            if error is not None and isinstance(error, kind):
                return _with_path(error, found)
    return None


def _with_path(
    error: InputError | OSError | MemoryError, found: list[InputError | OSError | MemoryError | None]
) -> InputError | OSError | MemoryError:
    """The same failure with its path, if an exception raised while it was handled names it."""
    if not isinstance(error, OSError) or error.filename:
        return error
    same = (other for other in found if isinstance(other, OSError) and other.errno == error.errno and other.filename)
    return next(same, error)


def shown_of(error: Exception) -> str:
    """The text of an exception that Beam raised: what it quotes, or its own last line."""
    return str(error) if isinstance(error, RuntimeError) else "".join(traceback.format_exception_only(error))


def _rebuilt(name: str, message: str) -> InputError | OSError | MemoryError | None:
    message = " ".join(_STEP.sub("", message).split("\n")).strip()
    kind = _class_of(name)
    if kind is None:
        return None
    if issubclass(kind, InputError):
        return InputError(message)
    if issubclass(kind, MemoryError | StoreError):
        return kind(message)
    if (parsed := _OS_ERROR.fullmatch(message)) is None:
        return OSError(message)
    quoted = parsed["name"]
    # Python picks the subclass (FileNotFoundError, ...) by the number.
    return OSError(int(parsed["errno"]), parsed["reason"], *([ast.literal_eval(quoted)] if quoted else []))


def _class_of(name: str) -> type[InputError] | type[OSError] | type[MemoryError] | None:
    """The class of a user error or a system error; None for any other."""
    module, _, own = name.rpartition(".")
    if not module:
        kind = getattr(builtins, own, None)
        return kind if isinstance(kind, type) and issubclass(kind, (OSError, MemoryError)) else None
    if not module.startswith("pipelines."):
        return None
    try:
        kind = getattr(importlib.import_module(module), own, None)
    except ImportError:
        return None
    return kind if isinstance(kind, type) and issubclass(kind, (InputError, OSError, MemoryError)) else None
