"""Counter-based random numbers: no draw depends on the runner, the worker or earlier draws.

A stream is named by a key, mixed from the seed and the subject of the choice (purpose, pass, document). Its n-th
number is SplitMix64's output function at `key + n * gamma` (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014). Compiled code keeps `(key, counter)` in a two-element uint64 array and draws from it.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

PURPOSE_PAIRS, PURPOSE_MASKS, PURPOSE_ROW_ORDER, PURPOSE_MIXTURE = 1, 2, 3, 4

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_UNIT = 1.0 / (1 << 53)


@numba.njit(cache=True, inline="always")
def mix(value: np.uint64) -> np.uint64:
    """SplitMix64's finaliser: a bijection of 64 bits in which every input bit affects every output bit."""
    value = np.uint64(value)
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


@numba.njit(cache=True)
def derive_key(key: np.uint64, part: int) -> np.uint64:
    """The key of the sub-stream `part` of a stream."""
    return mix(np.uint64(key) + _GAMMA * (np.uint64(part) + np.uint64(1)))


@numba.njit(cache=True, nogil=True)
def derive_keys(key: np.uint64, parts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The keys of many sub-streams of a stream, which also serve as random words."""
    words = np.empty(len(parts), np.uint64)
    for place in range(len(parts)):
        words[place] = derive_key(key, parts[place])
    return words


@numba.njit(cache=True, inline="always")
def next_bits(stream: NDArray[np.uint64]) -> np.uint64:
    """The next 64 random bits of a stream, `[key, counter]`."""
    stream[1] += np.uint64(1)
    return mix(stream[0] + stream[1] * _GAMMA)


@numba.njit(cache=True, inline="always")
def next_uniform(stream: NDArray[np.uint64]) -> float:
    """A number in [0, 1) with 53 random bits."""
    return float(next_bits(stream) >> np.uint64(11)) * _UNIT


@numba.njit(cache=True, inline="always")
def next_below(stream: NDArray[np.uint64], bound: int) -> np.int64:
    """An integer in [0, bound), for bounds below 2**31; its bias is under 2**-32 times the bound."""
    return np.int64(((next_bits(stream) >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


def key_of(seed: int, *parts: int) -> np.uint64:
    """The key of the stream named by a seed and any number of integers."""
    key = np.uint64(mix(np.uint64(seed)))
    for part in parts:
        key = np.uint64(derive_key(key, part))
    return key
