"""Units of work in the order in which Beam's local runner deals them."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterator

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from pipelines.jobs.dealing import dealt, dealt_to

SIZES = [90, 10, 70, 30, 50, 20, 80, 60, 40, 100]


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(1, 7))
def test_every_worker_gets_nearly_the_same(sizes: list[int], workers: int) -> None:
    units = dealt_to(workers, sizes, float)
    assert sorted(units) == sorted(sizes)
    shares = [sum(units[worker::workers]) for worker in range(workers)]
    assert max(shares) - min(shares) <= max(sizes, default=0)


def test_the_largest_unit_comes_first() -> None:
    assert dealt_to(1, SIZES, float) == sorted(SIZES, reverse=True)
    assert dealt_to(3, SIZES, float) == [100, 90, 80, 50, 60, 70, 40, 30, 20, 10]


class _Bundles(beam.DoFn):  # type: ignore[misc]  # Beam has no types
    def start_bundle(self) -> None:
        self._bundle = uuid.uuid4().hex

    def process(self, size: int) -> Iterator[tuple[str, int]]:
        yield self._bundle, size


def test_beam_gives_each_worker_its_share() -> None:
    """`Create` alone spreads its elements, and the runner deals them in turn."""

    def share_equally(found: list[tuple[str, int]]) -> None:
        shares: defaultdict[str, int] = defaultdict(int)
        for bundle, size in found:
            shares[bundle] += size
        assert len(found) == len(SIZES)
        assert sorted(shares.values()) == [270, 280]

    options = PipelineOptions(direct_num_workers=2, direct_running_mode="multi_threading")
    with beam.Pipeline(runner=FnApiRunner(), options=options) as pipeline:
        found = pipeline | beam.Create(dealt(pipeline, SIZES, float)) | beam.ParDo(_Bundles())
        assert_that(found, share_equally)
