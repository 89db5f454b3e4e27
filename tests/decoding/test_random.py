"""SplitMix64: the published numbers, and what a draw depends on."""

from __future__ import annotations

import numpy as np
import pytest

from ovgen.decoding import random
from ovgen.decoding.random import SEED_LIMIT, Draws, new_seed, states_of, uniforms_of

# The generator's first numbers for the seed 1234567, as in the reference C program's output.
REFERENCE = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_the_reference_numbers():
    draws = Draws(0, 0, 0)
    draws._state = 1234567
    assert [draws.uniform() for _ in REFERENCE] == [(n >> 11) * 2.0**-53 for n in REFERENCE]


def test_the_documented_start():
    gamma, mask = random._GAMMA, SEED_LIMIT - 1
    start = random._mix((7 + gamma) & mask)
    start = random._mix((start + 3 * gamma) & mask)
    start = random._mix((start + 11 * gamma) & mask)
    first = random._mix((start + gamma) & mask)
    assert Draws(7, 3, 11).uniform() == (first >> 11) * 2.0**-53


@pytest.mark.parametrize("seed", [0, 1, 2**63, SEED_LIMIT - 1])
def test_many_at_once_are_the_same_as_one_by_one(seed: int):
    one, many = Draws(seed, 1, 2), Draws(seed, 1, 2)
    expected = [one.uniform() for _ in range(50)]
    assert many.uniforms(20).tolist() + many.uniforms(30).tolist() == expected
    assert one.uniform() == many.uniform()


def test_every_coordinate_counts():
    firsts = {
        Draws(seed, index, position).uniform()
        for seed in range(8)
        for index in range(8)
        for position in range(8)
    }
    assert len(firsts) == 8**3
    assert Draws(5, 1, 2).uniform() == Draws(5, 1, 2).uniform()


def test_the_numbers_are_uniform_across_positions_and_indices():
    """Neighbouring streams must not resemble each other: 20 cells, chi-square below the 99.9%."""
    for numbers in (
        [Draws(1, 0, position).uniform() for position in range(20_000)],
        [Draws(1, index, 0).uniform() for index in range(20_000)],
        [Draws(seed, 0, 0).uniform() for seed in range(20_000)],
        Draws(1, 0, 0).uniforms(20_000),
    ):
        counts = np.bincount((np.array(numbers) * 20).astype(int), minlength=20)
        assert ((counts - 1000) ** 2 / 1000).sum() < 43.8
        assert min(numbers) >= 0
        assert max(numbers) < 1


def test_many_at_once_are_as_each_alone():
    seeds, indexes, positions = [0, 1, SEED_LIMIT - 1, 77], [0, 3, 2, 1], [0, 5, 99, 1]
    states = states_of(seeds, indexes, positions)
    for place, of_one in enumerate(zip(seeds, indexes, positions, strict=True)):
        draws = Draws(*of_one)
        for number in range(5):
            assert uniforms_of(states, number)[place] == draws.uniform()


def test_new_seeds_differ_and_fit():
    seeds = {new_seed() for _ in range(100)}
    assert len(seeds) == 100
    assert all(0 <= seed < SEED_LIMIT for seed in seeds)
