"""The parts of one run over several machines: four workers, a Spark cluster, two ssh hosts, servers and a store."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import fs
from tests.support.cluster.doors import doors
from tests.support.cluster.own_disk import OwnDisk
from tests.support.cluster.ssh_hosts import SshHosts, ssh_hosts
from tests.support.cluster.ssh_hosts import missing as missing_for_hosts
from tests.support.flows.servers_on_postgres import Servers, servers_on_postgres
from tests.support.object_store.s3_server import S3Server
from tests.support.spark.standalone import StandaloneSpark

from pipelines.runners import maven
from pipelines.runners.maven import JavaUnavailableError

FLOWS, CPU, GPU, TRIALS = POOLS = ("clozeworks-flows", "clozeworks-cpu", "clozeworks-gpu", "clozeworks-trials")
NAME = "drawn"

_CREDENTIALS = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
_RECIPE = """
[run]
name = "drawn"
workspace = "{workspace}"
workers = 1
{local_directory}
[documents]
sources = [{{ format = "python-docstrings", inputs = ["rich", "numpy"] }}]
num_shards = 2
[vocabulary]
size = 1000
[examples]
lengths = [{{ max_seq_length = 32, max_predictions_per_seq = 5 }}]
[model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 32
[finetuning]
max_seq_length = 32
batch_size = 8
learning_rate = 5e-3
num_train_epochs = 6
tables = [{{ name = "kind", train_file = "{table}", dev_share = 0.3 }}]
sweep = {{ grid = "none", seeds = 2 }}
[pretraining]
phases = [{{ max_seq_length = 32, steps = 20, global_batch_size = 8 }}]
num_warmup_steps = 5
eval_examples = 16
ranks = {ranks}
"""
_SPARK = """
[preprocessing]
runner = "spark"
pass_environment = {credentials}
options = {{ environment_cache_millis = 60000 }}
spark = {{ master = "{master}" }}
"""
_HOSTS = """
[pretraining.cluster]
kind = "hostfile"
hostfile = "{hostfile}"
options = ["-F", "{ssh_config}"]
"""


@dataclass(frozen=True)
class Parts:
    """What a run is spread over, started.

    recipe: path of the recipe on each machine.
    disks: by the name of the machine: of a pool's worker, or `b`, the second host.
    missing: why a part is absent, by its name; the run then does its work on the worker's machine.
    """

    servers: Servers
    store: S3Server
    workspace: str
    recipe: str
    disks: Mapping[str, OwnDisk]
    spark: StandaloneSpark | None
    hosts: SshHosts | None
    missing: Mapping[str, str]


@contextmanager
def parts_of_a_run(folder: Path, store: S3Server) -> Iterator[Parts]:
    """Start everything but the run; without Spark or ssh hosts where this machine cannot have them."""
    with ExitStack() as stack:
        missing: dict[str, str] = {}
        environment = {**store.environment, "CLOZEWORKS_TEST_BUCKET": store.bucket}
        (folder / "servers").mkdir()
        servers = stack.enter_context(servers_on_postgres(folder / "servers", environment))
        store_port = urlsplit(store.endpoint).port
        assert store_port is not None
        opened = stack.enter_context(doors([servers.prefect, servers.mlflow, store_port]))
        disks = {name: OwnDisk(folder, name) for name in (*POOLS, "b")}
        place = disks[FLOWS].place
        within = {name: disks[name].command for name in POOLS}
        variables = {name: dict(disks[name].environment) for name in POOLS}
        workspace, table = store.new_prefix(), f"{store.new_prefix()}/kind.csv"
        recipe = _RECIPE.format(
            workspace=workspace, table=table, ranks=2, local_directory=f'local_directory = "{place}/staging"'
        )

        hosts = spark = None
        if lacks := missing_for_hosts():
            missing["two ssh hosts"] = lacks
        else:
            (folder / "hosts").mkdir()
            hosts = stack.enter_context(ssh_hosts(folder / "hosts", [disks[GPU], disks["b"]]))
            within[GPU] = hosts.inside
            opened.open(lambda command: hosts.inside(command, 0))
            opened.open(lambda command: hosts.inside(command, 1))
            # Only the machine that starts the ranks has the file.
            (disks[GPU].directory / "hosts").write_text(Path(hosts.hostfile()).read_text())
            recipe = recipe.replace("ranks = 2", "ranks = 1")
            recipe += _HOSTS.format(hostfile=place / "hosts", ssh_config=hosts.ssh_config)
        try:
            (folder / "spark").mkdir()
            spark = stack.enter_context(StandaloneSpark(folder / "spark"))
        except JavaUnavailableError as reason:
            missing["Spark"] = str(reason)
        else:
            within[CPU] = lambda command: spark.command(*disks[CPU].command(command))
            variables[CPU] |= spark.environment
            opened.open(lambda command: spark.command(*command))
            # Fetching the jars again would take minutes.
            (disks[CPU].directory / "cache" / "clozeworks").mkdir()
            (disks[CPU].directory / "cache" / "clozeworks" / "spark").symlink_to(maven.cache_directory("spark"))
            recipe += _SPARK.format(master=spark.master, credentials=list(_CREDENTIALS))
        filesystem = filesystem_of(store)
        with filesystem.open_output_stream(table.removeprefix("s3://")) as stream:
            stream.write(learnable_table().encode())
        for name in POOLS:
            (disks[name].directory / "drawn.toml").write_text(recipe)
        assert "deployment  end-to-end/end-to-end-cluster created" in servers.deploy()
        for name in POOLS:
            servers.start_worker(name, within[name], variables[name])
        yield Parts(servers, store, workspace, f"{place}/drawn.toml", disks, spark, hosts, missing)


def laptop_recipe(folder: Path) -> str:
    """Path of the recipe for one machine and a workspace in `folder`."""
    table = folder / "kind.csv"
    table.write_text(learnable_table())
    path = folder / "drawn.toml"
    path.write_text(_RECIPE.format(workspace=folder / "workspace", table=table, ranks=2, local_directory=""))
    return str(path)


def filesystem_of(store: S3Server) -> fs.FileSystem:
    """The store as Arrow sees it, without variables of this process."""
    own = store.environment
    return fs.S3FileSystem(
        endpoint_override=store.endpoint,
        access_key=own["AWS_ACCESS_KEY_ID"],
        secret_key=own["AWS_SECRET_ACCESS_KEY"],
        region=own["AWS_DEFAULT_REGION"],
    )


def learnable_table() -> str:
    """Rows of a task that can be learnt: one word decides the label."""
    draw = random.Random(1)
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["text", "label"])
    for _ in range(300):
        label = draw.choice(["array", "string"])
        words = [*draw.choices(["the", "a", "of", "this", "is", "with", "for"], k=6), label]
        draw.shuffle(words)
        rows.writerow([" ".join(words), label])
    return text.getvalue()
