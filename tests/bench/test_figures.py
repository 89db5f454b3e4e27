"""Medians and ratios."""

from __future__ import annotations

import pytest

from ovgen.bench.figures import MEMORY, THROUGHPUT, TTFT, Figure, Samples

TIME = Figure(TTFT, "32 tokens", "s")
RATE = Figure(THROUGHPUT, "4 at a time", "tokens/s")
PEAK = Figure(MEMORY, "loaded", "bytes")


@pytest.fixture
def samples() -> Samples:
    samples = Samples()
    samples.add(PEAK, "ovgen", 100.0)
    for own, peer in ((1.0, 4.0), (9.0, 2.0), (2.0, 3.0)):
        samples.add(RATE, "ovgen", own)
        samples.add(RATE, "genai", peer)
        samples.add(TIME, "ovgen", own)
        samples.add(TIME, "genai", peer)
    return samples


def test_groups_are_in_the_order_of_the_table(samples):
    assert samples.figures == (TIME, RATE, PEAK)


def test_medians(samples):
    assert samples.median(TIME, "ovgen") == 2.0
    assert samples.median(TIME, "genai") == 3.0
    assert samples.median(PEAK, "genai") is None
    assert samples.rounds(RATE) == {"ovgen": [1.0, 9.0, 2.0], "genai": [4.0, 2.0, 3.0]}


def test_a_ratio_above_one_is_in_favour_of_ovgen(samples):
    assert samples.ratio(TIME, "genai") == 1.5  # less time
    assert samples.ratio(RATE, "genai") == pytest.approx(2 / 3)  # fewer tokens a second
    assert samples.ratio(PEAK, "genai") is None
    samples.add(PEAK, "genai", 50.0)
    assert samples.ratio(PEAK, "genai") == 0.5
    samples.add(Figure(TTFT, "none", "s"), "ovgen", 0.0)
    assert samples.ratio(Figure(TTFT, "none", "s"), "ovgen") is None
