"""Start, connect, watch and stop the processes of a run."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import torch
import torch.distributed

from pipelines.commands.gpus import ACCELERATOR_VARIABLE
from pipelines.commands.process_start import collect_as_usual
from training.engine.communication_op import extensions_directory, load_communication_operator
from training.engine.devices import chosen_device
from training.engine.meeting import Meeting
from training.engine.peers import Peers, watch_peers
from training.engine.rendezvous import LOOPBACK, all_ranks_are_here, meeting_store, stay_on_loopback
from training.engine.shared_memory import forget_own_buffer, remove_abandoned_buffers

_peers: Peers | None = None
_meeting: Meeting | None = None


@dataclass(frozen=True)
class Processes:
    """This process among its peers."""

    rank: int
    world_size: int
    device: torch.device
    peers: Peers | None = None
    """Watches the other ranks of this machine; None if there are none."""
    meeting: Meeting | None = None
    """Where all ranks wait for each other; None for one rank."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all ranks, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def count(self, value: bool) -> int:
        """Number of ranks on which a condition holds."""
        return int(self.sum(torch.tensor(int(value), device=self.device)))

    def number_of_first(self, number: float) -> float:
        """Rank 0's number on every rank, by an all-reduce: for each step, as `from_first` keeps all its values."""
        own = number if self.is_first else 0.0
        return float(self.sum(torch.tensor(own, dtype=torch.float64, device=self.device)))

    def reached(self, step: int) -> None:
        """Record the step that this rank has completed, for its peers to report if it dies."""
        if self.peers is not None:
            self.peers.reached(step)

    def explain_deaths_by(self, describe: Callable[[], str]) -> None:
        """Set a function that returns the remedy when a rank has died, such as which checkpoint will be resumed."""
        if self.peers is not None:
            self.peers.explain_by(describe)

    def barrier(self) -> None:
        """Wait for all ranks, however long one of them works."""
        if self.meeting is not None:
            self.meeting.barrier()

    def from_first(self, value: Any) -> Any:
        """Rank 0's value on every rank, pickled; the others wait, however long rank 0 works on it."""
        return value if self.meeting is None else self.meeting.from_first(value)

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value, on all ranks, pickled; all wait for the last one, however long it works."""
        return [value] if self.meeting is None else self.meeting.gathered(value)


def start_processes() -> Processes:
    """Join the launcher's process group or, without a launcher, create a group of one; start watching peers.

    If all ranks are on this machine, sockets listen on the loopback interface only.

    Raises:
        InputError: the machine has a GPU that torch cannot use.
    """
    global _peers, _meeting
    device = chosen_device(int(os.environ.get("LOCAL_RANK", "0")))
    on_gpu = device.type == "cuda"
    os.environ.setdefault(ACCELERATOR_VARIABLE, device.type)
    extensions_directory()
    defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": LOOPBACK, "MASTER_PORT": "0"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if all_ranks_are_here() or os.environ["MASTER_ADDR"] == LOOPBACK:
        stay_on_loopback()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    # DeepSpeed prints on standard output while it loads; that stream is for our own lines. Its output, such as that
    # an operator was built when it was only loaded, is shown only if loading fails.
    with _told_on_failure():
        with _without_mlflow():
            import deepspeed
            from deepspeed.accelerator import get_accelerator
            from deepspeed.constants import default_pg_timeout
            from deepspeed.utils import logger

        # A cycle of objects may hold tensors for as long as it is not found.
        collect_as_usual()
        logger.setLevel(logging.WARNING)
        # It warns about every optimizer but its own; ours are tested under each stage.
        logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())
        if not on_gpu:
            load_communication_operator()
        if not torch.distributed.is_initialized():
            if int(os.environ.get("LOCAL_RANK", "0")) == 0:
                remove_abandoned_buffers()
            store = meeting_store(rank, world_size, default_pg_timeout)
            torch.distributed.init_process_group(
                get_accelerator().communication_backend_name(),
                store=store,
                rank=rank,
                world_size=world_size,
                timeout=default_pg_timeout,
                # As DeepSpeed does if it creates the group; a single rank has no peer to connect to.
                device_id=device if on_gpu and world_size > 1 else None,
            )
            _peers = watch_peers(store, rank, world_size)
            _meeting = Meeting(store, rank, world_size) if world_size > 1 else None
            deepspeed.init_distributed(verbose=False)
            torch.distributed.barrier()
            forget_own_buffer()
    return Processes(rank, world_size, device, _peers, _meeting)


def stop_processes() -> None:
    """Leave the process group; a later `start_processes` in this process creates a new one."""
    global _peers, _meeting
    if _peers is not None:
        _peers.leave(failed=sys.exc_info()[0] is not None)
        _peers = None
    _meeting = None
    if torch.distributed.is_initialized():
        from deepspeed import comm

        # DeepSpeed keeps groups of its own in module globals, and a backend marked as initialized.
        comm.destroy_process_group()
        comm.comm.cdb = None


@contextlib.contextmanager
def _told_on_failure() -> Iterator[None]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    except BaseException:
        sys.stderr.write(said.getvalue())
        raise


@contextlib.contextmanager
def _without_mlflow() -> Iterator[None]:
    """Keep DeepSpeed's autotuner, which we never use, from importing MLflow: half of DeepSpeed's own import time."""
    missing = "mlflow" not in sys.modules
    if missing:
        sys.modules["mlflow"] = cast(ModuleType, None)  # makes `import mlflow` raise ImportError
    try:
        yield
    finally:
        if missing:
            del sys.modules["mlflow"]
