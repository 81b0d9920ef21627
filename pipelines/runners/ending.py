"""Run a constructed pipeline to its end, raise what stopped it as what it was, and cancel it on a cluster."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TypeAlias

import apache_beam as beam

from pipelines.contract.errors import InputError
from pipelines.jobs.beam_errors import first_cause, shown_of

Construct: TypeAlias = Callable[[beam.Pipeline], Any]
"""Adds a job's transforms to a pipeline."""


class Terminated(SystemExit):
    """SIGTERM arrived; raised in the main thread, so that a runner ends its work on a cluster first."""


def run_to_end(pipeline: beam.Pipeline, construct: Construct) -> None:
    """Run a pipeline and raise what stopped it, as the original exception if Beam only quotes it.

    Raises:
        InputError: a worker found a user error.
        OSError: a worker could not read or write a file.
        RuntimeError: the pipeline ended in another state than DONE, which the message names.
    """
    construct(pipeline)
    try:
        state = pipeline.run().wait_until_finish()
    except (InputError, RuntimeError) as error:
        raise_cause(error)
    require_done(state)


def run_on_cluster(pipeline: beam.Pipeline, construct: Construct) -> None:
    """As `run_to_end`, but an interrupt or SIGTERM cancels the job on the cluster, before it is raised.

    Raises:
        Terminated: SIGTERM arrived.
        KeyboardInterrupt: the user interrupted the command.
    """
    construct(pipeline)
    with terminated_in_order():
        try:
            result: Any = None
            try:
                with signals_held():
                    result = pipeline.run()
                state = result.wait_until_finish()
            except (KeyboardInterrupt, Terminated):
                if result is not None:
                    print("cancelling the job on the cluster", file=sys.stderr, flush=True)
                    result.cancel()
                raise
        except (InputError, RuntimeError) as error:
            raise_cause(error)
    require_done(state)


def raise_cause(error: InputError | RuntimeError) -> NoReturn:
    """Raise the worker's exception that Beam quotes, else the error itself."""
    # Raised in this process, an InputError keeps its type, with the step's name added.
    if (cause := first_cause(shown_of(error))) is not None:
        raise cause from error
    raise error


def require_done(state: str | None) -> None:
    """Raise a RuntimeError for another state than DONE; None means that the runner returned early (a dry run)."""
    if state is not None and state != "DONE":
        raise RuntimeError(f"the pipeline ended as {state}; see the runner's log")


@contextmanager
def terminated_in_order() -> Iterator[None]:
    """Raise `Terminated` in the main thread where SIGTERM would end the process at once."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may set handlers.
        yield
        return

    def terminate(number: int, _frame: FrameType | None) -> None:
        # A second one would cut off what the first has started.
        signal.signal(number, signal.SIG_IGN)
        raise Terminated(128 + number)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def signals_held() -> Iterator[None]:
    """Deliver SIGTERM and SIGINT only after the block, within which they would leave a job that nothing cancels."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda arrived, _frame: held.append(arrived)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])
