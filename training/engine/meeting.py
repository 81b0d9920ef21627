"""Ranks that wait for each other without a time-out, by the store they have met at.

A collective gives up after its group's time-out, ten minutes, although rank 0 may only be reading checksums of a large
corpus or converting a checkpoint. A rank that is gone is noticed all the same: the launcher or a peer ends the others,
and with rank 0 the store's connection closes.
"""

from __future__ import annotations

import base64
import pickle
from datetime import timedelta
from typing import Any

import torch.distributed
from torch.distributed.distributed_c10d import PrefixStore, Store

_ROUND_SECONDS = 60.0
"""Of one request to the store, which is repeated."""


class Meeting:
    """One rank's view of the ranks at a store; all ranks must make the same calls in the same order."""

    def __init__(self, store: Store, rank: int, world_size: int, round_seconds: float = _ROUND_SECONDS) -> None:
        self._store = PrefixStore("clozeworks/meeting", store)
        self._rank, self._world_size = rank, world_size
        self._round = timedelta(seconds=round_seconds)
        self._number = 0

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, pickled; the ranks are our own processes.

        Raises:
            ConnectionError: rank 0 is gone.
        """
        key = self._next_key()
        if self._rank == 0:
            self._put(key, value)
        else:
            value = self._taken(key)
        self._leave(key)
        return value

    def gathered(self, value: Any) -> list[Any]:
        """The values of all ranks by rank, pickled.

        Raises:
            ConnectionError: rank 0 is gone.
        """
        key, values = self._next_key(), [value]
        if self._rank:
            self._put(f"{key}/{self._rank}", value)
        else:
            for rank in range(1, self._world_size):
                values.append(self._taken(f"{key}/{rank}"))
                self._store.delete_key(f"{key}/{rank}")
        collected: list[Any] = self.from_first(values)
        return collected

    def _put(self, key: str, value: Any) -> None:
        self._store.set(key, base64.b64encode(pickle.dumps(value)).decode())

    def _taken(self, key: str) -> Any:
        self._wait_for(key)
        return pickle.loads(base64.b64decode(self._store.get(key)))  # noqa: S301 - written by a rank of this run

    def barrier(self) -> None:
        """Wait until all ranks are here.

        Raises:
            ConnectionError: rank 0 is gone.
        """
        key = self._next_key()
        if self._store.add(f"{key}/here", 1) == self._world_size:
            self._store.set(key, "")
        self._wait_for(key)
        self._leave(key)

    def _leave(self, key: str) -> None:
        """Rank 0 leaves last: the store may end with it."""
        if self._rank:
            if self._store.add(f"{key}/read", 1) == self._world_size - 1:
                self._store.set(f"{key}/done", "")
            return
        self._wait_for(f"{key}/done")
        for name in (key, f"{key}/here", f"{key}/read", f"{key}/done"):
            self._store.delete_key(name)

    def _next_key(self) -> str:
        self._number += 1
        return str(self._number)

    def _wait_for(self, key: str) -> None:
        while True:
            try:
                self._store.wait([key], self._round)
            except torch.distributed.DistNetworkError as error:
                raise ConnectionError(f"the store of rank 0 is gone ({error})") from error
            except torch.distributed.DistStoreError:
                continue
            return
