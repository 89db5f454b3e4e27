"""Many rows drawn at once give what each gives alone, token for token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovgen.decoding import nucleus, nucleus_rows
from ovgen.decoding.block_weights import BlockWeights
from ovgen.decoding.candidates import Workspace, weights_of
from ovgen.decoding.nucleus import Nucleus
from ovgen.decoding.random import Draws, states_of
from ovgen.decoding.row_threads import RowThreads
from tests.decoding.test_sampler_distribution import assert_follows, expected_distribution

THREADS = RowThreads()


def together(logits: np.ndarray, nuclei: list[Nucleus], position: int = 0) -> list[int | None]:
    count = len(logits)
    states = states_of([5] * count, range(count), [position] * count)
    return nucleus_rows.draw(logits, nuclei, states, Workspace(), THREADS)


def alone(logits: np.ndarray, nuclei: list[Nucleus], position: int = 0) -> list[int | None]:
    scratch = np.empty(logits.shape[1], np.bool_)
    return [
        nucleus.draw(
            weights_of(row, None, np.float32(one.temperature)),
            one.p,
            Draws(5, place, position),
            scratch,
        )
        for place, (row, one) in enumerate(zip(logits, nuclei, strict=True))
    ]


@given(
    seed=st.integers(0, 1 << 30),
    num_rows=st.integers(1, 12),
    vocab=st.sampled_from([1, 2, 40, 255, 256, 257, 3000, 50_257]),
    scale=st.sampled_from([0.0, 0.2, 1.0, 3.0, 40.0]),
    level=st.sampled_from([0.0, 60.0, -300.0]),
    digits=st.sampled_from([0, 1, 7]),  # fewer make more of them equal
)
@settings(deadline=None, max_examples=150)
def test_like_each_alone(
    seed: int, num_rows: int, vocab: int, scale: float, level: float, digits: int
):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((num_rows, vocab))).round(digits).astype(np.float32)
    logits[rng.random(num_rows) < 0.3] += np.float32(level)
    logits[:, 1:][rng.random((num_rows, vocab - 1)) < 0.1] = -np.inf
    nuclei = [
        Nucleus(float(np.float32(temperature)), p)
        for temperature, p in zip(
            rng.choice([0.1, 0.8, 1.0, 2.0], num_rows),
            rng.choice([0.05, 0.5, 0.9, 0.999, 1.0], num_rows),
            strict=True,
        )
    ]
    before = logits.copy()
    found = together(logits, nuclei)
    np.testing.assert_array_equal(logits, before)
    assert found == alone(logits, nuclei)


@pytest.mark.parametrize("vocab", [49_152, 151_936])
def test_as_many_as_a_model_gives(vocab: int):
    """Parts of several threads, and blocks as those of a real vocabulary."""
    rng = np.random.default_rng(vocab)
    logits = rng.normal(0, 3, (21, vocab)).astype(np.float32)
    logits[:, rng.integers(0, vocab, 40)] += np.linspace(14, 6, 40, dtype=np.float32)
    nuclei = [Nucleus(0.75, 0.9)] * 21
    for position in range(4):
        found = together(logits, nuclei, position)
        assert found == alone(logits, nuclei, position)
        assert found[4:6] == together(logits, nuclei, position)[4:6]


def test_draws_follow_the_filtered_distribution():
    options = {"top_p": 0.8, "temperature": 1.5}
    row = np.random.default_rng(6).normal(0, 1, 600).astype(np.float32)
    logits, counts = np.repeat(row[None], 100, axis=0), np.zeros(600, int)
    for position in range(200):
        found = together(logits, [Nucleus(1.5, 0.8)] * 100, position)
        counts += np.bincount([token for token in found if token is not None], minlength=600)
    assert counts.sum() > 0.99 * 20_000
    assert_follows(counts, expected_distribution(row, options))


def test_rows_that_hold_no_numbers_are_left_out():
    logits = np.random.default_rng(7).normal(0, 1, (6, 700)).astype(np.float32)
    logits[1, 690], logits[2, 3], logits[4] = np.nan, np.inf, -np.inf
    nuclei = [Nucleus(0.8, 0.9)] * 6
    found = together(logits, nuclei)
    assert [token is None for token in found] == [False, True, True, False, True, False]
    logits[[1, 2, 4]] = 0
    wanted = alone(logits, nuclei)
    assert [found[row] for row in (0, 3, 5)] == [wanted[row] for row in (0, 3, 5)]


@pytest.mark.parametrize("vocab", [255, 512, 1000])
def test_block_sums_are_those_of_the_weights(vocab: int):
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 2, (5, vocab)).astype(np.float32)
    logits[3] += 500
    temperatures = np.array([1, 0.5, 2, 1, 0.7], np.float32)
    weights = BlockWeights(logits, temperatures, Workspace(), THREADS)
    whole = np.exp(logits.astype(np.float64) / temperatures[:, None])
    whole[3] = np.exp(logits[3].astype(np.float64) - logits[3].max())
    for row in range(5):
        sums = [whole[row, start : start + 256].sum() for start in range(0, vocab, 256)]
        np.testing.assert_allclose(weights.sums[row], sums, rtol=1e-4)
        np.testing.assert_allclose(weights.bounds[row], np.cumsum(sums), rtol=1e-4)
        last = np.array([len(sums) - 1])
        (found,) = weights.of_blocks(np.array([row]), last)
        rest = whole[row, 256 * last[0] :]
        np.testing.assert_allclose(found[: len(rest)], rest, rtol=1e-4)
        assert not found[len(rest) :].any()


def test_parts_that_take_something_off_at_the_same_time(monkeypatch: pytest.MonkeyPatch):
    """Whatever arrays a part makes, the other part is computed in the middle of it."""
    logits = np.full((4, 1 << 18), 300, np.float32)
    waiting = []

    class Interleaved(RowThreads):
        def run(self, work, num_parts):
            waiting.extend(range(1, num_parts))
            work(0)
            while waiting:
                work(waiting.pop())

    def interrupted(zeros=np.zeros):
        def make(*arguments, **options):
            if waiting:
                weights._compute(waiting.pop())
            return zeros(*arguments, **options)

        return make

    weights = BlockWeights.__new__(BlockWeights)
    monkeypatch.setattr(np, "zeros", interrupted())
    weights.__init__(logits, np.ones(4, np.float32), Workspace(), Interleaved())
    blocks = weights.of_blocks(np.arange(4), np.zeros(4, int))
    np.testing.assert_array_equal(blocks, np.ones((4, 256)))
