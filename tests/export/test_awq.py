"""AWQ folders against codes that were packed one by one (tests/oracles/packed_checkpoints.py)."""

from pathlib import Path

import numpy as np
import pytest
from safetensors_files import write_folder

from ovgen.errors import ModelFormatError, UnsupportedModelError
from ovgen.export.checkpoint import Grid
from ovgen.export.safetensors_checkpoint import open_safetensors

TESTS = Path(__file__).parents[1]
RECORDS = np.load(TESTS / "data" / "packed_llama.npz")
FOLDER = TESTS / "fixtures" / "packed" / "awq"
NAMES = [key.removeprefix("awq/") for key in RECORDS.files if key.startswith("awq/model")]
OPTIONS = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}
QWEIGHT = np.random.default_rng(2).integers(-(2**31), 2**31, (32, 3)).astype(np.int32)
PARTS = {"qweight": QWEIGHT, "qzeros": QWEIGHT[:2], "scales": np.ones((2, 24), np.float16)}


def read(tmp_path, parts, config=None, side_file=None):
    tensors = {f"x.{name}": part for name, part in parts.items() if part is not None}
    folder = write_folder(tmp_path / "m", tensors, config)
    if side_file is not None:
        (folder / "quant_config.json").write_text(side_file)
    with open_safetensors(folder) as checkpoint:
        return checkpoint.tensors["x.weight"]


def assert_on_grid(tensor, rows, wanted):
    codes = tensor.codes(rows)
    assert codes.codes.dtype == np.uint8
    assert codes.codes.max() <= 15
    values = codes.codes * np.repeat(codes.scales, tensor.grid.group, axis=1)
    values += np.repeat(codes.offsets, tensor.grid.group, axis=1)
    np.testing.assert_array_equal(values, wanted)


def test_values_and_codes_are_the_oracles():
    assert len(NAMES) == 7
    with open_safetensors(FOLDER) as checkpoint:
        assert not [name for name in checkpoint.tensors if name.endswith(("qweight", "qzeros"))]
        for name in NAMES:
            tensor, wanted = checkpoint.tensors[name], RECORDS[f"awq/{name}"]
            assert (tensor.name, tensor.shape, tensor.dtype) == (name, wanted.shape, "AWQ 4 bit")
            assert tensor.grid == Grid(4, 32, has_offsets=True, has_zero_points=True)
            assert tensor.column_order is None
            np.testing.assert_array_equal(tensor.values(slice(None)), wanted)
            assert_on_grid(tensor, slice(None), wanted)


@pytest.mark.parametrize(
    "rows", [slice(3, 5), slice(7, 20), slice(90, 96), np.array([95, 0, 41, 41]), np.array([8])]
)
def test_some_rows(rows):
    name = "model.layers.0.mlp.up_proj.weight"
    with open_safetensors(FOLDER) as checkpoint:
        tensor, wanted = checkpoint.tensors[name], RECORDS[f"awq/{name}"][rows]
        np.testing.assert_array_equal(tensor.values(rows), wanted)
        assert_on_grid(tensor, rows, wanted)


def test_zero_points_in_the_middle_need_no_offsets(tmp_path):
    middle = np.full((2, 3), 0x88888888, np.uint32).view(np.int32)
    config = {"quantization_config": OPTIONS}
    tensor = read(tmp_path, PARTS | {"qzeros": middle}, config)
    assert tensor.grid == Grid(4, 16, has_offsets=False)
    codes = tensor.codes(slice(None))
    assert codes.offsets is None
    assert (codes.codes.min(), codes.codes.max()) == (-8, 7)
    np.testing.assert_array_equal(codes.codes, tensor.values(slice(None)))


def test_the_config_of_early_tools(tmp_path):
    side = '{"zero_point": true, "q_group_size": 16, "w_bit": 4, "version": "GEMM"}'
    tensor = read(tmp_path, PARTS, side_file=side)
    same = read(tmp_path, PARTS, {"quantization_config": OPTIONS})
    np.testing.assert_array_equal(tensor.values(slice(None)), same.values(slice(None)))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"qzeros": None}, {}, "'x' has no 'qzeros'"),
        ({"scales": None}, {}, "'x' has no 'scales'"),
        ({"qweight": QWEIGHT.astype(np.int64)}, {}, "'qweight' of dtype I64"),
        ({"qzeros": QWEIGHT[:1]}, {}, r"shape \[1, 3\], expected I32 or \[2, 3\]"),
        ({"scales": np.ones((2, 3), np.float16)}, {}, r"expected \[2, 24\]"),
        ({"scales": np.ones((2, 24), np.int32)}, {}, "expected a matrix of F16"),
        ({}, {"group_size": 32}, "2 groups for 32 inputs, which the config's group_size 32"),
        ({}, {"group_size": "16"}, "'group_size' of the quantization config is '16'"),
        ({}, {"bits": None}, "'bits' of the quantization config is None"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, changes, options, message):
    with pytest.raises(ModelFormatError, match=message):
        read(tmp_path, PARTS | changes, {"quantization_config": OPTIONS | options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "gemv"}, "packed as 'gemv'; supported: 'gemm'"),
        ({"version": 3}, "packed as 3"),
        ({"version": None, "checkpoint_format": "gemv_fast"}, "packed as 'gemv_fast'"),
        ({"version": None, "format": ["gemm"]}, r"packed as \['gemm'\]"),
        ({"bits": 8}, "of 8 bits; supported: 4"),
    ],
)
def test_packings_that_are_not_read_are_named(tmp_path, options, message):
    with pytest.raises(UnsupportedModelError, match=message):
        read(tmp_path, PARTS, {"quantization_config": OPTIONS | options})
