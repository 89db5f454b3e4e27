"""Rounding against NNCF's records, and the search for scales against trying them all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ovgen.export import quantize
from ovgen.export.quantize import NF4_LEVELS, Groups, pack_nibbles

RECORDS = Path(__file__).parents[1] / "data" / "nncf_weights.npz"


@pytest.fixture(scope="module")
def records() -> dict[str, np.ndarray]:
    with np.load(RECORDS) as file:
        return dict(file)


def grouped(records: dict[str, np.ndarray], group: int) -> np.ndarray:
    return records["weight"].astype(np.float32).reshape(-1, group)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


@pytest.mark.parametrize("group", [64, 256])
@pytest.mark.parametrize("mode", ["int8_sym", "int8_asym", "int4_sym", "int4_asym", "nf4"])
def test_without_a_search_the_values_are_nncfs(
    records: dict[str, np.ndarray], mode: str, group: int
) -> None:
    groups = grouped(records, group)
    if mode == "nf4":
        ours = quantize.nf4(groups, np.float32, search=False).values(nf4=True)
    elif mode.startswith("int4"):
        rounded4 = quantize.symmetric4 if mode == "int4_sym" else quantize.asymmetric4
        ours = rounded4(groups, np.float32, search=False).values()
    else:
        rounded = quantize.symmetric8 if mode == "int8_sym" else quantize.asymmetric8
        ours = rounded(groups, np.float32).values()
    theirs = records[f"{mode}_{group}"].reshape(groups.shape)
    if mode == "int8_sym":  # NNCF uses -128 as well, for a step that is 1/128 of the largest value
        assert rms(ours - groups) == pytest.approx(rms(theirs - groups), rel=0.02)
        return
    # A value halfway between two steps may go to either.
    step = np.abs(groups).max() / (7 if mode.startswith("int4") else 127)
    different = np.abs(ours - theirs) > 1e-6
    assert different.mean() < 2e-3
    assert rms(ours - groups) == pytest.approx(rms(theirs - groups), rel=1e-3)
    assert np.abs(ours - theirs).max() < 1.1 * step


@pytest.mark.parametrize("group", [64, 256])
def test_errors_are_below_nncfs(records: dict[str, np.ndarray], group: int) -> None:
    groups = grouped(records, group)
    counts = np.abs(groups) + np.sqrt(np.square(groups).mean(axis=1, keepdims=True))

    def counted(values: np.ndarray) -> float:
        return rms((values.reshape(groups.shape) - groups) * np.sqrt(counts))

    asym = quantize.asymmetric4(groups, np.float16, search=True).values()
    assert counted(asym) < 0.98 * counted(records[f"int4_asym_{group}"])
    sym = quantize.symmetric4(groups, np.float16, search=True).values()
    assert counted(sym) < 0.98 * counted(records[f"int4_sym_{group}"])
    levels = quantize.nf4(groups, np.float16, search=True).values(nf4=True)
    assert counted(levels) < 0.99 * counted(records[f"nf4_{group}"])


def best_error(groups: np.ndarray, scales: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The smallest counted squared error of each group over all these scales."""
    errors = []
    for scale in scales.T:
        codes = np.clip(np.rint(groups / scale[:, None]), -8, 7)
        errors.append((counts * np.square(codes * scale[:, None] - groups)).sum(axis=1))
    return np.min(errors, axis=0)


def test_the_search_comes_close_to_trying_all_scales() -> None:
    rng = np.random.default_rng(0)
    groups = rng.standard_t(5, (64, 128)).astype(np.float32)
    importance = rng.exponential(1, groups.shape).astype(np.float32)
    found = quantize.symmetric4(groups, np.float32, search=True, importance=importance)
    plain = quantize.symmetric4(groups, np.float32, search=False)
    counts = importance
    error = (counts * np.square(found.values() - groups)).sum(axis=1)
    best = best_error(groups, plain.scales[:, None] * np.linspace(0.5, 1.05, 400), counts)
    assert error.mean() < 1.03 * best.mean()
    assert error.mean() < 0.95 * (counts * np.square(plain.values() - groups)).sum(axis=1).mean()


def test_importance_moves_the_error_to_where_it_counts_less() -> None:
    groups = np.random.default_rng(1).standard_normal((256, 64)).astype(np.float32)
    importance = np.ones_like(groups)
    importance[:, ::2] = 100
    for grid in (quantize.symmetric4, quantize.asymmetric4, quantize.nf4):
        nf4 = grid is quantize.nf4
        plain = grid(groups, np.float16, search=True).values(nf4=nf4) - groups
        weighted = grid(groups, np.float16, search=True, importance=importance).values(nf4=nf4)
        weighted -= groups
        assert rms(weighted[:, ::2]) < rms(plain[:, ::2])
        assert rms(weighted[:, 1::2]) > rms(plain[:, 1::2])


def test_a_grid_fits_what_lies_on_one() -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 16, (32, 64))
    codes[:, :2] = (0, 15)
    scale, zero_points = rng.uniform(0.5, 2, (32, 1)), rng.integers(0, 16, (32, 1))
    groups = (scale * (codes - zero_points)).astype(np.float32)
    for search in (True, False):
        found = quantize.asymmetric4(groups, np.float32, search=search)
        np.testing.assert_allclose(found.values(), groups, rtol=2e-6, atol=1e-5)
        np.testing.assert_array_equal(found.codes, codes)
        np.testing.assert_array_equal(found.zero_points, zero_points[:, 0])


@pytest.mark.parametrize("shift", [3, -3])
def test_groups_beside_zero(shift: float) -> None:
    """Zero is on the grid, so that the steps reach from there."""
    groups = np.random.default_rng(3).uniform(-1, 1, (32, 64)).astype(np.float32) + shift
    for search in (True, False):
        found = quantize.asymmetric4(groups, np.float32, search=search)
        assert np.abs(found.values() - groups).max() <= (abs(shift) + 1) / 15 * (
            1 if search else 0.5
        )


@pytest.mark.parametrize("value", [0.0, 1e-30, 3e-8, -3e-8, 0.25])
def test_constant_groups(value: float) -> None:
    groups = np.full((2, 32), value, np.float32)
    for rounded in (
        quantize.symmetric8(groups, np.float16),
        quantize.asymmetric8(groups, np.float16),
        quantize.symmetric4(groups, np.float16, search=True),
        quantize.asymmetric4(groups, np.float16, search=True),
        quantize.nf4(groups, np.float16, search=True),
    ):
        is_nf4 = rounded.codes.dtype == np.uint8 and rounded.zero_points is None
        values = rounded.values(nf4=is_nf4)
        np.testing.assert_allclose(values, groups, atol=2e-7, rtol=2e-3)
        assert (rounded.scales != 0).all()


def test_nf4_codes_are_the_nearest_levels() -> None:
    values = np.linspace(-1, 1, 4096, dtype=np.float32)
    middles = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2
    groups = np.sort(np.concatenate([values, middles, middles + 1e-6, middles - 1e-6]))[None]
    codes = quantize.nf4(groups, np.float32, search=False).codes
    distance = np.abs(groups[0, :, None] - NF4_LEVELS)
    np.testing.assert_allclose(
        np.abs(groups[0] - NF4_LEVELS[codes[0]]), distance.min(axis=1), atol=1e-7
    )


def test_nibbles_are_packed_low_half_first() -> None:
    codes = np.array([[1, -2, 7, -8]], np.int8)
    np.testing.assert_array_equal(pack_nibbles(codes), [[0xE1, 0x87]])


def test_values_with_zero_points() -> None:
    groups = Groups(
        np.array([[0, 255]], np.uint8), np.array([0.5], np.float16), None, np.array([1], np.uint8)
    )
    np.testing.assert_array_equal(groups.values(), [[-0.5, 127]])
