"""Contradictions between the ranks of a stage, over all nodes of its cluster, and the rest of the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from training.settings.cluster import ClusterConfig
from training.settings.distillation import DistillationConfig
from training.settings.finetuning import FinetuningConfig
from training.settings.pretraining import PretrainingConfig


class World(NamedTuple):
    """The ranks of a stage over all nodes, and the settings that say so."""

    size: int
    settings: str

    @classmethod
    def of(cls, setting: str, ranks: int, cluster: ClusterConfig) -> World:
        """By the recipe alone; the least there can be where a hostfile or a node's GPUs decide."""
        nodes = cluster.num_nodes or 1
        # One rank of fine-tuning uses one node.
        if nodes == 1 or (setting == "finetuning.ranks" and ranks == 1):
            return cls(max(1, ranks), f"{setting} = {ranks}")
        return cls(max(1, ranks) * nodes, f"{setting} = {ranks} on each of pretraining.cluster.nodes = {nodes}")


def unsaid_ranks(cluster: ClusterConfig, setting: str, ranks: int) -> Iterator[str]:
    """Ranks of a node that cannot be left to the node, for they are requested."""
    if cluster.requests_ranks and not ranks:
        what = "a pod requests a number of GPUs" if cluster.kind == "kubernetes" else "they are the tasks to request"
        yield f"{setting} = 0 with pretraining.cluster.kind = {cluster.kind!r}: {what}; set it to the GPUs of a node"


def pretraining_steps(config: PretrainingConfig, world: World) -> Iterator[str]:
    """Phases with a step that has no row for each rank."""
    for index, phase in enumerate(config.phases):
        place = f"pretraining.phases.{index}"
        yield from _step(place, phase.full_sequences, config.micro_batch_size, world)
        if phase.batch_warmup is not None and phase.batch_warmup.start < world.size:
            yield (
                f"{place}.batch_warmup.start = {phase.batch_warmup.start} is too small for {world.settings}; raise it, "
                "or lower the ranks"
            )


def distillation_steps(config: DistillationConfig, world: World) -> Iterator[str]:
    """A step of distillation that has no row for each rank."""
    yield from _step("distillation", config.global_batch_size, config.micro_batch_size, world)


def finetuning_batches(config: FinetuningConfig, world: World) -> Iterator[str]:
    """Tasks with batches that have no row for each rank."""
    for task in config.tasks:
        key, fitting = config.fitting_key(task), config.fitting(task)
        if fitting.batch_size < world.size:
            yield (
                f"{key}.batch_size = {fitting.batch_size} is below {world.settings}, which share it; raise the former "
                "or lower the latter"
            )


def _step(place: str, sequences: int, micro_batch_size: int | None, world: World) -> Iterator[str]:
    share = -(-sequences // world.size)
    micro_batches = -(-share // (micro_batch_size or share))
    if sequences < world.size * micro_batches:
        yield (
            f"{place}: a step of {sequences} full sequences is too small for {world.settings} with {micro_batches} "
            "micro-batches each; raise its global_batch_size or global_batch_tokens, or lower the ranks"
        )
