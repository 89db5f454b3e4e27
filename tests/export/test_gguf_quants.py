"""The dequantizers against the `gguf` package, and the integer grids against the dequantizers."""

import gguf
import numpy as np
import pytest

from ovgen.export.gguf_quants import BLOCK_LAYOUTS, GGMLType, codes, dequantize

ROWS, BLOCKS = 9, 5
QUANTIZED = [t for t in GGMLType if BLOCK_LAYOUTS[t].size > 1]
RANGES = {
    GGMLType.Q4_0: (-8, 7, 32, 4),
    GGMLType.Q4_1: (0, 15, 32, 4),
    GGMLType.Q5_0: (-16, 15, 32, 5),
    GGMLType.Q5_1: (0, 31, 32, 5),
    GGMLType.Q8_0: (-128, 127, 32, 8),
    GGMLType.Q2_K: (0, 3, 16, 2),
    GGMLType.Q3_K: (-4, 3, 16, 3),
    GGMLType.Q4_K: (0, 15, 32, 4),
    GGMLType.Q5_K: (0, 31, 32, 5),
    GGMLType.Q6_K: (-32, 31, 16, 6),
    GGMLType.IQ4_NL: (-127, 113, 32, 8),
    GGMLType.IQ4_XS: (-127, 113, 32, 8),
    GGMLType.MXFP4: (-12, 12, 32, 8),
}
WITH_OFFSETS = {GGMLType.Q4_1, GGMLType.Q5_1, GGMLType.Q2_K, GGMLType.Q4_K, GGMLType.Q5_K}


def random_rows(ggml_type: GGMLType) -> np.ndarray:
    """Any bytes at all: every bit pattern of codes and scales, NaN and infinity among them."""
    rng = np.random.default_rng(int(ggml_type))
    return rng.integers(0, 256, (ROWS, BLOCKS * BLOCK_LAYOUTS[ggml_type].nbytes), dtype=np.uint8)


def expected(data: np.ndarray, ggml_type: GGMLType) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType(int(ggml_type)))


def assert_same_bits(actual: np.ndarray, wanted: np.ndarray) -> None:
    assert actual.dtype == np.float32
    assert actual.shape == wanted.shape
    nan = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(actual), nan)
    np.testing.assert_array_equal(actual.view(np.uint32)[~nan], wanted.view(np.uint32)[~nan])


@pytest.mark.parametrize("ggml_type", GGMLType, ids=lambda t: t.name)
def test_block_layout_is_the_formats(ggml_type):
    layout = BLOCK_LAYOUTS[ggml_type]
    wanted = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(ggml_type))]
    assert (layout.size, layout.nbytes) == wanted


@pytest.mark.parametrize("ggml_type", GGMLType, ids=lambda t: t.name)
def test_dequantizes_to_the_bits_of_the_gguf_package(ggml_type):
    data = random_rows(ggml_type)
    assert_same_bits(dequantize(data, ggml_type), expected(data, ggml_type))


@pytest.mark.parametrize("ggml_type", GGMLType, ids=lambda t: t.name)
def test_dequantizes_a_slice_of_rows(ggml_type):
    data = random_rows(ggml_type)
    data.flags.writeable = False  # as a mapped file is
    assert_same_bits(dequantize(data[3:5], ggml_type), expected(data, ggml_type)[3:5])


@pytest.mark.parametrize("ggml_type", QUANTIZED, ids=lambda t: t.name)
def test_codes_are_the_files_grid(ggml_type):
    data = random_rows(ggml_type)
    grid = codes(data, ggml_type)
    low, high, group, bits = RANGES[ggml_type]
    cols = BLOCKS * BLOCK_LAYOUTS[ggml_type].size
    assert (grid.group, grid.bits) == (group, bits)
    assert grid.codes.shape == (ROWS, cols)
    assert grid.codes.dtype == (np.uint8 if ggml_type in WITH_OFFSETS else np.int8)
    assert (grid.codes.min(), grid.codes.max()) == (low, high)
    assert grid.scales.shape == (ROWS, cols // group)
    assert grid.scales.dtype == np.float32
    assert (grid.offsets is not None) == (ggml_type in WITH_OFFSETS)
    with np.errstate(all="ignore"):
        values = grid.codes.astype(np.float32) * np.repeat(grid.scales, group, axis=1)
        if grid.offsets is not None:
            assert grid.offsets.dtype == np.float32
            values += np.repeat(grid.offsets, group, axis=1)
    assert_same_bits(values, expected(data, ggml_type))


HALVES = np.array(
    [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00], np.uint16
)


@pytest.mark.parametrize("ggml_type", QUANTIZED, ids=lambda t: t.name)
def test_scales_of_zero_denormal_largest_and_not_finite(ggml_type):
    layout = BLOCK_LAYOUTS[ggml_type]
    blocks = random_rows(ggml_type)[:1].view(layout.record).repeat(20, axis=0)
    if ggml_type == GGMLType.MXFP4:
        blocks["e"] = np.array([0, 1, 2, 127, 128, 253, 254, 255] * 3, np.uint8)[:20, None]
    else:
        blocks["d"] = HALVES.view(np.float16).repeat(2)[:, None]
        for name in {"m", "dmin"} & {*(layout.record.names or ())}:
            blocks[name] = np.tile(HALVES.view(np.float16), 2)[:, None]
    data = blocks.view(np.uint8).reshape(20, -1)
    assert_same_bits(dequantize(data, ggml_type), expected(data, ggml_type))


@pytest.mark.parametrize("ggml_type", [GGMLType.F32, GGMLType.F16, GGMLType.BF16])
def test_float_types_have_no_codes(ggml_type):
    assert codes(random_rows(ggml_type), ggml_type) is None


def test_float32_is_not_copied():
    data = random_rows(GGMLType.F32)
    assert np.shares_memory(dequantize(data, GGMLType.F32), data)


def test_scales_that_are_not_finite_are_kept():
    block = np.zeros(1, BLOCK_LAYOUTS[GGMLType.Q8_0].record)
    block["d"] = np.inf
    grid = codes(block.view(np.uint8)[None], GGMLType.Q8_0)
    assert np.isinf(grid.scales).all()
