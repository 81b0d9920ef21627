"""The order in which a job names its units of work, so that all workers get about as much."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions

Unit = TypeVar("Unit")


def dealt(pipeline: beam.Pipeline, units: Iterable[Unit], size: Callable[[Unit], float]) -> list[Unit]:
    """Units for `beam.Create`, for the number of local workers that the pipeline has.

    Beam's local runner gives each of N workers every Nth element at once, and none to a worker that has nothing left.
    `Create` spreads its elements over the workers itself. A cluster's workers take the largest ones first.
    """
    return dealt_to(pipeline.options.view_as(DirectOptions).direct_num_workers or 1, units, size)


def dealt_to(workers: int, units: Iterable[Unit], size: Callable[[Unit], float]) -> list[Unit]:
    """Units from the largest to the smallest, every second round of `workers` in reverse.

    The units that each worker gets then add up to nearly the same size.
    """
    largest_first = sorted(units, key=size, reverse=True)
    rounds = [largest_first[start : start + workers] for start in range(0, len(largest_first), workers)]
    return [unit for number, turn in enumerate(rounds) for unit in (reversed(turn) if number % 2 else turn)]
