"""Seconds that a part of a run takes as a run of a deployment beyond its own work, on a real Prefect server.

A part that does nothing, and eight of them mapped over a pool of three places, against a run without parts. Wall clock,
for it is mostly waiting; the CPU time of the processes that a part starts shows what does not depend on other programs.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from tests.support import REPOSITORY
from tests.support.flows.parts_of_a_run import CHILDREN, PARENTS
from tests.support.flows.prefect_site import PrefectSite, prefect_site

MAPPED_PARTS = 8
_IMPORTS = ("prefect.engine, prefect.flow_engine", "prefect.engine, prefect.flow_engine, flows.pretrain")


def flow(rounds: int) -> dict[str, Any]:
    """Seconds for a part, alone and among others; CPU seconds of what its process imports."""
    prefect_cpu, flows_cpu = (statistics.median(_cpu_of_imports(each) for _ in range(3)) for each in _IMPORTS)
    with tempfile.TemporaryDirectory() as home, prefect_site(home, str(REPOSITORY)) as site:
        deployed = site.command("tests.support.flows.parts_of_a_run")
        assert deployed.returncode == 0, deployed.stderr
        for pool in (PARENTS, CHILDREN):
            site.start_worker(pool)
        _run_seconds(site, 1)  # the first run loads what later ones find in the page cache
        rows = []
        for _ in range(rounds):
            rows.append({number: _run_seconds(site, number) for number in (0, 1, MAPPED_PARTS)})
            print(f"flow: seconds by parts: {rows[-1]}", file=sys.stderr, flush=True)
    alone, one, mapped = (statistics.median(row[number] for row in rows) for number in (0, 1, MAPPED_PARTS))
    return {
        "seconds_for_a_part": round(statistics.median(row[1] - row[0] for row in rows), 2),
        "seconds_for_each_mapped": round((mapped - alone) / MAPPED_PARTS, 2),
        "run_seconds": {"without_parts": round(alone, 2), "one_part": round(one, 2), "mapped": round(mapped, 2)},
        "mapped_parts": MAPPED_PARTS,
        "import_cpu_seconds": {"prefect": round(prefect_cpu, 2), "flows": round(flows_cpu - prefect_cpu, 2)},
        "missed": [],
    }


def _cpu_of_imports(modules: str) -> float:
    """CPU seconds of a process that imports modules and ends."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", f"import {modules}"], cwd=REPOSITORY, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _run_seconds(site: PrefectSite, parts: int) -> float:
    """Seconds from the request of a run to its end."""
    begin = time.monotonic()
    children = {f"part {number}": ["child/working", "completes"] for number in range(parts)}
    run = site.run(site.deployment("parent", "waiting"), {"children": children})
    state = site.wait_until_ended(run)
    assert state["type"] == "COMPLETED", state["message"]
    return time.monotonic() - begin
