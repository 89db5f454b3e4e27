"""Number formats against torch's values of all codes (tests/oracles/packed_checkpoints.py)."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from ovgen.export.float_formats import ITEM_SIZES, to_float32

RECORDS = np.load(Path(__file__).parents[1] / "data" / "packed_llama.npz")
BYTES = np.arange(256, dtype=np.uint8).reshape(4, 64)
RANDOM = np.random.default_rng(3).integers(0, 256, (3, 4096), dtype=np.uint8)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_all_codes_of_eight_bits_are_torchs(dtype):
    values = to_float32(BYTES, dtype)
    wanted = RECORDS[dtype.lower()].reshape(4, 64)
    nan = np.isnan(wanted)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(values), nan)
    np.testing.assert_array_equal(values.view(np.uint32)[~nan], wanted.view(np.uint32)[~nan])


def test_bf16_is_the_upper_half_of_a_float():
    wanted = gguf.quants.dequantize(RANDOM, gguf.GGMLQuantizationType.BF16)
    np.testing.assert_array_equal(
        to_float32(RANDOM, "BF16").view(np.uint32), wanted.view(np.uint32)
    )


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("F32", "f4"), ("F16", "f2"), ("I64", "i8"), ("U16", "u2"), ("I8", "i1"), ("I32", "i4")],
)
def test_numbers_that_numpy_has(dtype, kind):
    with np.errstate(all="ignore"):
        wanted = RANDOM.view(kind).astype(np.float32)
    values = to_float32(RANDOM, dtype)
    assert values.dtype == np.float32
    assert values.shape == (3, 4096 // ITEM_SIZES[dtype])
    np.testing.assert_array_equal(values, wanted)


def test_doubles_beyond_the_range_become_infinite():
    data = np.array([[1.5, 1e300, -1e300, 1e-300]]).view(np.uint8)
    assert to_float32(data, "F64").tolist() == [[1.5, np.inf, -np.inf, 0.0]]


def test_float32_is_not_copied():
    assert np.shares_memory(to_float32(RANDOM, "F32"), RANDOM)


def test_data_that_is_not_aligned():
    data = RANDOM[:, 1:4093]
    wanted = np.ascontiguousarray(data).view(np.float32)
    np.testing.assert_array_equal(to_float32(data, "F32"), wanted)
