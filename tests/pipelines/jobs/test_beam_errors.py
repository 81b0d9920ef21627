"""A worker's exception quoted by Beam is raised with its own type: the first cause, without the step's name."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable

import pytest

from pipelines.contract.errors import InputError
from pipelines.contract.recipe_text import RecipeError
from pipelines.jobs.beam_errors import first_cause, shown_of


def quoted(raise_it: Callable[[], None]) -> str:
    try:
        raise_it()
    except Exception:  # noqa: BLE001 - whatever it is
        return traceback.format_exc()
    raise AssertionError


def read_what_is_not_there() -> None:
    open('/not/here\'s "one"', "rb").close()


def refuse_after_another() -> None:
    try:
        read_what_is_not_there()
    except OSError as error:
        raise RecipeError("r.toml: documents: no such file; name another") from error


def test_a_mistake_counts_before_the_failure_that_led_to_it() -> None:
    error = first_cause(quoted(refuse_after_another))
    assert isinstance(error, InputError)
    assert str(error) == "r.toml: documents: no such file; name another"


def test_a_failure_of_the_system_has_its_number_and_path() -> None:
    error = first_cause(quoted(read_what_is_not_there))
    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.filename) == (errno.ENOENT, '/not/here\'s "one"')


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (
            "Pipeline job-1 failed in state FAILED: java.lang.RuntimeError: Error received from SDK harness for "
            'instruction 4: Traceback (most recent call last):\n  File "a.py", line 1, in f\n'
            "pipelines.contract.errors.InputError: a.txt: row 3: bad [while running 'Read/ParDo(Read)']\n\n"
            "\tat org.apache",
            InputError,
            "a.txt: row 3: bad",
        ),
        (
            'Traceback (most recent call last):\n  File "a.py", line 1, in f\n'
            "RuntimeError: OSError: [Errno 28] No space left on device: '/w/x.arrow' [while running 'Write']\n",
            OSError,
            "[Errno 28] No space left on device: '/w/x.arrow'",
        ),
        ('Traceback (most recent call last):\n  File "a.py", line 1, in f\nMemoryError\n', MemoryError, ""),
    ],
)
def test_other_runners_and_wrappers_are_looked_through(text: str, kind: type[Exception], message: str) -> None:
    error = first_cause(text)
    assert type(error) is kind
    assert str(error) == message


def test_a_fault_of_the_program_is_none_of_these() -> None:
    assert first_cause(quoted(lambda: {}["key"])) is None
    assert first_cause('Traceback (most recent call last):\n  File "a.py"\nos.system.InputError: no\n') is None


def test_an_exception_of_this_process_loses_the_name_of_the_step() -> None:
    error = first_cause(shown_of(InputError("a.txt: bad [while running 'Read']")))
    assert str(error) == "a.txt: bad"


def test_of_one_failure_the_exception_that_knows_the_path_is_taken() -> None:
    """Arrow's own exception has no path, and the one that names it is raised while that is handled."""
    error = first_cause(
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\n'
        "OSError: [Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device\n\n"
        "During handling of the above exception, another exception occurred:\n\n"
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\n'
        "RuntimeError: OSError: [Errno 28] Error writing bytes to file: '/w/x.arrow' [while running 'Write']\n"
    )
    assert isinstance(error, OSError)
    assert (error.errno, error.filename) == (errno.ENOSPC, "/w/x.arrow")
