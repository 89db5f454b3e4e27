"""GPTQ folders against codes that were packed one by one (tests/oracles/packed_checkpoints.py)."""

from pathlib import Path

import numpy as np
import pytest
from safetensors_files import write_folder

from ovgen.errors import ModelFormatError, UnsupportedModelError
from ovgen.export.checkpoint import Grid
from ovgen.export.safetensors_checkpoint import open_safetensors

TESTS = Path(__file__).parents[1]
RECORDS = np.load(TESTS / "data" / "packed_llama.npz")
PACKED = TESTS / "fixtures" / "packed"
KINDS = ["gptq", "gptq_act_order", "gptq_v2", "gptq_3bit"]
IN, OUT, GROUP = 64, 32, 16
OPTIONS = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
RNG = np.random.default_rng(5)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Words [count * bits / 32, n] of codes [count, n], bit by bit."""
    flags = np.zeros((codes.shape[0] * bits, codes.shape[1]), np.uint64)
    for bit in range(bits):
        flags[bit::bits] = codes.astype(np.uint64) >> np.uint64(bit) & np.uint64(1)
    places = np.uint64(1) << np.arange(32, dtype=np.uint64)
    words = (flags.reshape(-1, 32, codes.shape[1]) * places[:, None]).sum(axis=1)
    return words.astype(np.uint32).view(np.int32)


class Layer:
    """A random layer of 64 inputs and 32 outputs, and its value."""

    def __init__(self, bits: int = 4, *, group: int = GROUP, symmetric=False, g_idx=None):
        groups = -(-IN // group)
        self.bits = bits
        self.codes = RNG.integers(0, 2**bits, (IN, OUT))
        self.zeros = RNG.integers(0, 2**bits, (groups, OUT))
        if symmetric:
            self.zeros[:] = 2 ** (bits - 1)
        self.scales = RNG.standard_normal((groups, OUT)).astype(np.float16)
        self.g_idx = np.arange(IN) // group if g_idx is None else np.asarray(g_idx)
        self.value = self.scales.astype(np.float32)[self.g_idx] * (
            self.codes - self.zeros[self.g_idx]
        ).astype(np.float32)

    def tensors(self, **changes) -> dict:
        parts = {
            "qweight": pack(self.codes, self.bits),
            "qzeros": pack(self.zeros.T, self.bits).T.copy(),
            "scales": self.scales,
            "g_idx": self.g_idx.astype(np.int32),
        } | changes
        return {f"x.{name}": part for name, part in parts.items() if part is not None}


def read(tmp_path, tensors, **options):
    config = {"quantization_config": OPTIONS | {"checkpoint_format": "gptq_v2"} | options}
    folder = write_folder(tmp_path / "m", tensors, config)
    with open_safetensors(folder) as checkpoint:
        return checkpoint.tensors["x.weight"]


def regroup(tensor, rows=slice(None)) -> np.ndarray:
    """The values that the codes stand for, with the columns in their own order."""
    codes = tensor.codes(rows)
    grid = tensor.grid
    assert codes.codes.dtype == (np.uint8 if grid.has_offsets else np.int8)
    assert (codes.offsets is not None) == grid.has_offsets
    values = codes.codes.astype(np.float32) * np.repeat(codes.scales, grid.group, axis=1)
    if codes.offsets is not None:
        values += np.repeat(codes.offsets, grid.group, axis=1)
    order = tensor.column_order
    if order is None:
        return values
    restored = np.empty_like(values)
    restored[:, order] = values
    return restored


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_codes_are_the_oracles(kind):
    names = [key.removeprefix(f"{kind}/") for key in RECORDS.files if key.startswith(f"{kind}/m")]
    assert len(names) == 7
    with open_safetensors(PACKED / kind) as checkpoint:
        assert not [n for n in checkpoint.tensors if n.endswith(("qweight", "scales", "g_idx"))]
        assert checkpoint.tensors["model.norm.weight"].dtype == "F16"
        for name in names:
            tensor, wanted = checkpoint.tensors[name], RECORDS[f"{kind}/{name}"]
            bits = 3 if kind == "gptq_3bit" else 4
            assert (tensor.name, tensor.shape) == (name, wanted.shape)
            assert tensor.dtype == f"GPTQ {bits} bit"
            has_zeros = kind != "gptq"
            assert tensor.grid == Grid(bits, 32, has_zeros, has_zero_points=has_zeros)
            assert (tensor.column_order is not None) == (kind == "gptq_act_order")
            np.testing.assert_array_equal(tensor.values(slice(None)), wanted)
            np.testing.assert_array_equal(regroup(tensor), wanted)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_bits(tmp_path, bits, symmetric):
    layer = Layer(bits, symmetric=symmetric)
    tensor = read(tmp_path, layer.tensors(), bits=bits)
    assert tensor.grid == Grid(bits, GROUP, not symmetric, has_zero_points=not symmetric)
    np.testing.assert_array_equal(tensor.values(slice(None)), layer.value.T)
    np.testing.assert_array_equal(regroup(tensor), layer.value.T)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("rows", [slice(5, 7), slice(8, 32), slice(0, 1), np.array([31, 0, 9, 9])])
def test_some_rows(tmp_path, bits, rows):
    layer = Layer(bits)
    tensor = read(tmp_path, layer.tensors(), bits=bits)
    np.testing.assert_array_equal(tensor.values(rows), layer.value.T[rows])
    np.testing.assert_array_equal(regroup(tensor, rows), layer.value.T[rows])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_first_version_stores_zero_points_less_one(tmp_path, bits):
    layer = Layer(bits)
    # As GPTQModel converts: one from every code by one subtraction a word, borrows and all.
    ones = sum(1 << bit for bit in range(0, 32, bits))
    words = pack(layer.zeros.T, bits).T.copy().view(np.uint32)
    with np.errstate(over="ignore"):
        stored = (words - np.uint32(ones)).view(np.int32)
    tensor = read(tmp_path, layer.tensors(qzeros=stored), bits=bits, checkpoint_format="gptq")
    assert (layer.zeros == 0).any() or bits == 8
    np.testing.assert_array_equal(tensor.values(slice(None)), layer.value.T)
    np.testing.assert_array_equal(tensor.values(slice(9, 11)), layer.value.T[9:11])


def test_three_bits_less_one_wrap_around(tmp_path):
    layer = Layer(3)
    assert (layer.zeros == 0).any()
    stored = pack((layer.zeros.T - 1) % 8, 3).T.copy()
    tensor = read(tmp_path, layer.tensors(qzeros=stored), bits=3, checkpoint_format="gptq")
    np.testing.assert_array_equal(tensor.values(slice(None)), layer.value.T)


@pytest.mark.parametrize("zero", [7, 9])
def test_zero_points_beside_the_middle_need_offsets(tmp_path, zero):
    layer = Layer(symmetric=True)
    layer.zeros[2, 5] = zero
    tensor = read(tmp_path, layer.tensors())
    assert tensor.grid.has_offsets


def test_the_first_version_is_the_default(tmp_path):
    layer = Layer(symmetric=True)
    stored = pack(layer.zeros.T - 1, 4).T.copy()
    tensor = read(tmp_path, layer.tensors(qzeros=stored), checkpoint_format=None)
    np.testing.assert_array_equal(tensor.values(slice(None)), layer.value.T)


def test_act_order_keeps_the_grid(tmp_path):
    layer = Layer(g_idx=RNG.permutation(np.arange(IN) // GROUP))
    tensor = read(tmp_path, layer.tensors(), desc_act=True)
    assert tensor.grid == Grid(4, GROUP, has_offsets=True, has_zero_points=True)
    np.testing.assert_array_equal(np.sort(tensor.column_order), np.arange(IN))
    np.testing.assert_array_equal(layer.g_idx[tensor.column_order], np.arange(IN) // GROUP)
    np.testing.assert_array_equal(tensor.values(slice(3, 9)), layer.value.T[3:9])
    np.testing.assert_array_equal(regroup(tensor, slice(3, 9)), layer.value.T[3:9])


def test_groups_of_different_sizes_have_values_only(tmp_path):
    layer = Layer(g_idx=np.minimum(np.arange(IN) // 10, 3))
    tensor = read(tmp_path, layer.tensors())
    assert tensor.grid is None
    assert tensor.column_order is None
    np.testing.assert_array_equal(tensor.values(slice(None)), layer.value.T)
    with pytest.raises(TypeError, match="no grid"):
        tensor.codes(slice(None))


def test_one_group_and_no_index(tmp_path):
    layer = Layer(group=IN)
    tensor = read(tmp_path, layer.tensors(g_idx=None), group_size=-1)
    assert tensor.grid.group == IN
    np.testing.assert_array_equal(tensor.values(slice(None)), layer.value.T)


def test_a_last_group_that_is_cut_off(tmp_path):
    layer = Layer(group=24)
    tensor = read(tmp_path, layer.tensors(g_idx=None), group_size=24)
    assert tensor.grid is None
    np.testing.assert_array_equal(tensor.values(slice(None)), layer.value.T)


def test_layers_may_differ_where_the_config_says_so(tmp_path):
    layer = Layer(8, group=32)
    tensor = read(tmp_path, layer.tensors(), dynamic={"+:x": {"bits": 8, "group_size": 32}})
    assert tensor.grid == Grid(8, 32, has_offsets=True, has_zero_points=True)
    np.testing.assert_array_equal(tensor.values(slice(None)), layer.value.T)


def test_the_config_of_early_tools(tmp_path):
    layer = Layer(symmetric=True)
    folder = write_folder(tmp_path / "m", layer.tensors(qzeros=pack(layer.zeros.T - 1, 4).T.copy()))
    (folder / "quantize_config.json").write_text('{"bits": 4, "group_size": 16, "sym": true}')
    with open_safetensors(folder) as checkpoint:
        values = checkpoint.tensors["x.weight"].values(slice(None))
    np.testing.assert_array_equal(values, layer.value.T)


def test_scales_that_are_not_finite_show_in_the_values(tmp_path):
    layer = Layer(symmetric=True)
    layer.scales[1, 4] = np.inf
    values = read(tmp_path, layer.tensors()).values(slice(None))
    assert not np.isfinite(values[4, 16:32]).any()
    assert np.isfinite(np.delete(values, 4, axis=0)).all()


LAYER = Layer()
ZEROS = LAYER.tensors()["x.qzeros"]
NARROW = LAYER.tensors()["x.qweight"][:, :30], LAYER.scales[:, :30]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"qzeros": None}, {}, "'x' has no 'qzeros'"),
        ({"scales": None}, {}, "'x' has no 'scales'"),
        ({"qweight": None}, {}, "'x' has no 'qweight'"),
        ({"weight": LAYER.scales}, {}, "is there as 'weight' as well"),
        ({"qweight": LAYER.scales}, {}, "'qweight' of dtype F16 .* expected a matrix of I32"),
        ({"qzeros": ZEROS.astype(np.int64)}, {}, "'qzeros' of dtype I64"),
        ({"qzeros": ZEROS[:-1]}, {}, r"'qzeros' of dtype I32 and shape \[3, 4\]"),
        ({"scales": LAYER.scales.astype(np.int32)}, {}, "'scales' of dtype I32"),
        ({"scales": LAYER.scales[:, :-1]}, {}, r"'scales' of dtype F16 and shape \[4, 31\]"),
        ({"scales": LAYER.scales[0]}, {}, r"shape \[32\], expected a matrix"),
        ({"g_idx": LAYER.g_idx.astype(np.int64)}, {}, "'g_idx' of dtype I64"),
        ({"g_idx": np.full(IN, 4, np.int32)}, {}, "columns in groups beyond its 4"),
        ({"g_idx": np.full(IN, -1, np.int32)}, {}, "columns in groups beyond its 4"),
        ({"g_idx": np.zeros(IN + 1, np.int32)}, {}, "is of 3 bits, the config says 4"),
        ({"g_idx": np.zeros(IN + 1, np.int32)}, {"dynamic": {"x": {}}}, "no whole number"),
        ({"qweight": NARROW[0], "scales": NARROW[1]}, {}, "has 30 outputs, which do not fill"),
        ({}, {"bits": 8}, "is of 4 bits, the config says 8"),
        ({}, {"group_size": 32}, "4 groups for 64 inputs, which the config's group_size 32"),
        ({}, {"group_size": 0}, "group_size 0"),
        ({}, {"bits": "4"}, "'bits' of the quantization config is '4', expected an integer"),
        ({}, {"bits": None}, "'bits' of the quantization config is None"),
        ({}, {"bits": True}, "'bits' of the quantization config is True"),
        ({}, {"group_size": 1e9}, "'group_size' of the quantization config is 1000000000.0"),
        ({}, {"group_size": 10**40}, "'group_size' of the quantization config is 1000"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, changes, options, message):
    with pytest.raises(ModelFormatError, match=message):
        read(tmp_path, LAYER.tensors(**changes), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_format": "marlin"}, "packed as 'marlin'; supported: gptq, gptq_v2"),
        ({"is_marlin_format": True}, "packed as 'marlin'"),
        ({"checkpoint_format": ["x"]}, "packed as"),
        ({"checkpoint_format": None, "format": "gptq_p"}, "packed as 'gptq_p'"),
        ({"bits": 5}, "of 5 bits; supported: 2, 3, 4, 8"),
    ],
)
def test_packings_that_are_not_read_are_named(tmp_path, options, message):
    with pytest.raises(UnsupportedModelError, match=message):
        read(tmp_path, LAYER.tensors(), **options)


def test_no_layer_is_quantized(tmp_path):
    with pytest.raises(ModelFormatError, match=r"no tensor is called \*\.qweight"):
        read(tmp_path, {"x.weight": LAYER.scales})
