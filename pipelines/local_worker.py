"""A worker process of the local Beam runner: Beam's own, but quiet, and gone when the run that started it is gone."""

from __future__ import annotations

import logging
import sys

from apache_beam.runners.worker import sdk_worker_main

from pipelines.lifeline import follow_lifeline
from pipelines.runners import quiet_logs


def main() -> None:
    follow_lifeline()
    quiet_logs()
    # It warns of a staging directory that only containers have.
    logging.getLogger(sdk_worker_main.__name__).setLevel(logging.ERROR)
    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main()
