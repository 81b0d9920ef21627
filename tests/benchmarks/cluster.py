"""What a workspace in an object store costs, on a real S3 server on loopback.

`stall`: the share of a training's time for which its steps wait for checkpoints, in an object store beyond what they
wait on a local disk; at most 1 %. The same pre-training runs in turn on both; the waits are those inside the calls that
start a checkpoint, the last one left out, since the end of a run waits for the store.

`flow`: seconds that a part of a run takes as a run of a deployment, beyond its own work: one part that does nothing,
and eight of them mapped over a pool of three places, against a run without parts. Wall clock, for it is mostly waiting.

    make bench NAME=cluster
    .venv/bin/python tests/benchmarks/cluster.py --parts stall --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support import REPOSITORY
from tests.support.flows.parts_of_a_run import CHILDREN, PARENTS
from tests.support.flows.prefect_site import PrefectSite, prefect_site
from tests.support.measuring import report
from tests.support.object_store.s3_server import running_server
from tests.support.training.synthetic_run import Workspace, write_workspace

from pipelines.contract import storage
from pipelines.contract.recipe import read_recipe

STEPS, EVERY_STEPS = 40, 10
STALL_SETTINGS = [
    f"pretraining.phases=[{{max_seq_length=64, steps={STEPS}, global_batch_size=32}}]",
    f"pretraining.checkpoint_every_steps={EVERY_STEPS}",
    *("pretraining.eval_every_steps=1000", "pretraining.log_every_steps=10"),
    *("model.hidden_size=384", "model.num_hidden_layers=6", "model.num_attention_heads=6"),
    "model.intermediate_size=1536",
]
"""About 11 million parameters: 130 MB a checkpoint."""
MAPPED_PARTS = 8


def stall(rounds: int) -> None:
    """Report the share of step time that is lost to checkpoints in a store."""
    (REPOSITORY / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as directory, running_server(Path(directory)) as server:
        os.environ |= server.environment | {"XDG_CACHE_HOME": os.path.join(directory, "cache")}
        local = write_workspace(os.path.join(directory, "local"))
        shares: dict[str, list[float]] = {"local": [], "store": []}
        seconds: dict[str, list[float]] = {"local": [], "store": []}
        for number in range(rounds):
            uri = server.new_prefix()
            for name in storage.list_files(local.path):
                if name.startswith(("documents/", "vocabulary/", "examples/")):
                    data = storage.read_bytes(storage.join(local.path, name))
                    storage.write_bytes(storage.join(uri, name), data)
                    storage.write_bytes(storage.join(directory, f"local{number}", name), data)
            on_disk = Workspace(os.path.join(directory, f"local{number}"), local.recipe)
            for kind, workspace in (("local", on_disk), ("store", Workspace(uri, local.recipe))):
                waited, total = _waits(workspace)
                shares[kind].append(waited / total)
                seconds[kind].append(total)
        value = statistics.median(shares["store"]) - statistics.median(shares["local"])
        report(
            "cluster-stall",
            100.0 * value,
            "% of the time of steps, waited for checkpoints in a store beyond those on a disk",
            runs=rounds,
            server=server.kind,
            store_percent=[round(100.0 * share, 2) for share in shares["store"]],
            local_percent=[round(100.0 * share, 2) for share in shares["local"]],
            loop_seconds={kind: [round(each, 2) for each in values] for kind, values in seconds.items()},
        )


def _waits(workspace: Workspace) -> tuple[float, float]:
    """Seconds inside the calls that start a checkpoint, and of the loop until its last step."""
    from training.engine.processes import start_processes, stop_processes
    from training.pretraining.bert_objective import BertObjective
    from training.pretraining.run import TrainingRun
    from training.resuming.process_end import StopRequest
    from training.stages.pretraining import pretraining_inputs
    from training.stages.sections import PretrainingSections

    overrides = [f"run.workspace={json.dumps(workspace.path)}", *STALL_SETTINGS]
    inputs = pretraining_inputs(PretrainingSections.of(read_recipe(workspace.recipe, overrides)))
    run: Any = TrainingRun(BertObjective(inputs), start_processes(), StopRequest())
    started, waited = 0.0, 0.0
    last_seconds = 0.0
    save = run._checkpoints.save

    def timed(engine: Any, progress: Any, wait_seconds: float = 0.0) -> None:
        nonlocal waited, last_seconds
        begun = time.monotonic()
        if progress.step == STEPS:
            last_seconds = begun - started
            save(engine, progress, wait_seconds)
            return
        save(engine, progress, wait_seconds)
        waited += time.monotonic() - begun

    run._checkpoints.save = timed
    train_phase = run._train_phase

    def from_here(*arguments: Any) -> Any:
        nonlocal started
        started = time.monotonic()
        return train_phase(*arguments)

    run._train_phase = from_here
    try:
        assert run.run(restart=None) == 0
    finally:
        stop_processes()
    return waited, last_seconds


def flow_overhead(rounds: int) -> None:
    """Report the seconds that a run waits for a part beyond the part's own work."""
    with tempfile.TemporaryDirectory() as home, prefect_site(home, str(REPOSITORY)) as site:
        deployed = site.command("tests.support.flows.parts_of_a_run")
        assert deployed.returncode == 0, deployed.stderr
        for pool in (PARENTS, CHILDREN):
            site.start_worker(pool)
        _run_seconds(site, 1)  # the first run loads what later ones find in the page cache
        numbers = (0, 1, MAPPED_PARTS)
        seconds = {number: statistics.median(_run_seconds(site, number) for _ in range(rounds)) for number in numbers}
    report(
        "cluster_flow",
        seconds[1] - seconds[0],
        "s for a part",
        run_alone=seconds[0],
        mapped_parts=MAPPED_PARTS,
        mapped_each=(seconds[MAPPED_PARTS] - seconds[0]) / MAPPED_PARTS,
        runs=rounds,
    )


def _run_seconds(site: PrefectSite, parts: int) -> float:
    """Seconds from the request of a run to its end."""
    begin = time.monotonic()
    children = {f"part {number}": ["child/working", "completes"] for number in range(parts)}
    run = site.run(site.deployment("parent", "waiting"), {"children": children})
    state = site.wait_until_ended(run)
    assert state["type"] == "COMPLETED", state["message"]
    return time.monotonic() - begin


PARTS = {"stall": stall, "flow": flow_overhead}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=sorted(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for part in arguments.parts:
        PARTS[part](arguments.rounds)


if __name__ == "__main__":
    main()
