"""Random numbers that are the same on every platform, in any batch and after any interruption.

A number depends on four things only: the request's seed, the sequence's index in the request, the
position in its output, and how many numbers were drawn there before. Nothing is carried from step
to step, so a step that is computed again draws the same again.

The generator is SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
2014): the k-th number of a stream is ``mix(start + k * GAMMA)``, k from 1.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

States: TypeAlias = npt.NDArray[np.uint64]

SEED_LIMIT = 1 << 64
_MASK = SEED_LIMIT - 1
_GAMMA = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def new_seed() -> int:
    """A seed from the system's entropy."""
    return secrets.randbits(64)


def derived_seed(seed: int, number: int) -> int:
    """The seed of the ``number``-th of several requests that share one, from 0.

    It is ``mix(mix(seed + GAMMA) + number * GAMMA)``.
    """
    return _mix((_mix((seed + _GAMMA) & _MASK) + number * _GAMMA) & _MASK)


class Draws:
    """The uniform numbers of one sequence at one position.

    The stream starts at ``mix(mix(seed + GAMMA) + index * GAMMA)``, mixed once more with the
    position in the same way.
    """

    __slots__ = ("_state",)

    def __init__(self, seed: int, index: int, position: int) -> None:
        start = _mix((seed + _GAMMA) & _MASK)
        start = _mix((start + index * _GAMMA) & _MASK)
        self._state = _mix((start + position * _GAMMA) & _MASK)

    def uniform(self) -> float:
        """The next number in [0, 1), a multiple of 2**-53."""
        self._state = (self._state + _GAMMA) & _MASK
        return (_mix(self._state) >> 11) * 2.0**-53

    def uniforms(self, count: int) -> npt.NDArray[np.float64]:
        """The next ``count`` numbers, as so many calls of `uniform` give them."""
        states = np.uint64(self._state) + np.arange(1, count + 1, dtype=np.uint64) * _GAMMA64
        self._state = (self._state + count * _GAMMA) & _MASK
        return (_mixed(states) >> _DROPPED) * 2.0**-53


def states_of(seeds: Sequence[int], indexes: Sequence[int], positions: Sequence[int]) -> States:
    """Those of many `Draws`, [num], before any number is drawn."""
    states = _mixed(np.array(seeds, np.uint64) + _GAMMA64)
    for numbers in (indexes, positions):
        states = _mixed(states + np.array(numbers, np.uint64) * _GAMMA64)
    return states


def uniforms_of(states: States, number: int) -> npt.NDArray[np.float64]:
    """The ``number``-th number of many `Draws`, from 0, as so many calls of `Draws.uniform` give
    it."""
    step = np.uint64((number + 1) * _GAMMA & _MASK)
    return (_mixed(states + step) >> _DROPPED) * 2.0**-53


_GAMMA64 = np.uint64(_GAMMA)
_FACTORS64 = tuple(np.uint64(factor) for factor in _FACTORS)
_SHIFTS64 = (np.uint64(30), np.uint64(27))
_LAST64 = np.uint64(31)
_DROPPED = np.uint64(11)


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * _FACTORS[0]) & _MASK
    value = ((value ^ (value >> 27)) * _FACTORS[1]) & _MASK
    return value ^ (value >> 31)


def _mixed(values: States) -> States:
    """`_mix` of each."""
    for shift, factor in zip(_SHIFTS64, _FACTORS64, strict=True):
        values = (values ^ (values >> shift)) * factor
    return values ^ (values >> _LAST64)
