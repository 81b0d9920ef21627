"""What several machines cost: staging, start-up, checkpoints in a store and runs as parts, on loopback.

`staging`: MB/s of a store into the local cache, against a plain download of the same objects; at least 0.7 of it.
`startup`: seconds of a node with an empty cache until its first step, and how much of the examples it has then.
`stall`: the share of a training's time for which its steps wait for checkpoints in a store; at most 1 % more than on
a disk. `flow`: seconds that a part of a run takes as a run of a deployment, beyond its own work.

The last line is one JSON object; `value` counts the goals that were missed.

    make bench NAME=cluster
    .venv/bin/python tests/benchmarks/cluster.py --parts stall --rounds 3
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from tests.support.cluster_bench.flow import flow
from tests.support.cluster_bench.staging import staging
from tests.support.cluster_bench.stall import stall
from tests.support.cluster_bench.startup import startup
from tests.support.measuring import report

PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "staging": staging,
    "startup": startup,
    "stall": stall,
    "flow": flow,
}
"""Each returns its facts for a number of rounds, `missed` among them: goals that were not reached."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    facts: dict[str, dict[str, Any]] = {}
    for part in arguments.parts:
        before = os.getloadavg()[0]
        print(f"{part} ...", file=sys.stderr, flush=True)
        found = PARTS[part](arguments.rounds)
        facts[part] = {**found, "load": [round(before, 1), round(os.getloadavg()[0], 1)]}
        print(f"{part}: {facts[part]}", file=sys.stderr, flush=True)
    missed = [goal for each in facts.values() for goal in each.pop("missed")]
    report("cluster", float(len(missed)), "goals missed", missed=missed, runs=arguments.rounds, **facts)


if __name__ == "__main__":
    main()
