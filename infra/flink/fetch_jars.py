"""Fetch the class path of Flink and of Beam's job server with Maven, once, and print its directory."""

from __future__ import annotations

import sys

from pipelines.contract.errors import exit_code_of
from pipelines.runners import maven


def main() -> None:
    print(maven.fetch_jars("flink", maven.WITH_CLUSTER))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
