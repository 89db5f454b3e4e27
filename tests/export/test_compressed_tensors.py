"""Layers against compressed-tensors' own (tests/oracles/compressed_tensors_layers.py)."""

from pathlib import Path

import numpy as np
import pytest
from safetensors_files import write_folder

from ovgen.errors import ModelFormatError, UnsupportedModelError
from ovgen.export.checkpoint import Grid
from ovgen.export.safetensors_checkpoint import open_safetensors

RECORDS = np.load(Path(__file__).parents[1] / "data" / "compressed_tensors.npz")
GRIDS = {
    "int4": Grid(4, 32, has_offsets=False),
    "int4_asym": Grid(4, 32, has_offsets=True, has_zero_points=True),
    "int4_channel": Grid(4, 96, has_offsets=False),
    "int3_asym": Grid(3, 32, has_offsets=True, has_zero_points=True),
    "int8_packed": Grid(8, 32, has_offsets=True, has_zero_points=True),
    "int8": Grid(8, 96, has_offsets=False),
    "int8_asym": Grid(8, 96, has_offsets=True, has_zero_points=True),
    "int8_tensor": Grid(8, 96, has_offsets=False),
    "fp8": None,
    "fp8_block": None,
}


def layer(case: str, **changes) -> dict:
    parts = {key.split("/")[1]: RECORDS[key] for key in RECORDS.files if key.startswith(f"{case}/")}
    del parts["value"]
    if case.startswith("fp8"):
        raw = parts["weight"]
        parts["weight"] = ("F8_E4M3", raw.shape, raw.tobytes())
    return {f"x.{name}": part for name, part in (parts | changes).items() if part is not None}


def read(tmp_path, tensors, **options):
    weights = {"block_structure": [16, 32]}
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "config_groups": {"group_0": {"weights": weights, "format": "pack-quantized"}},
    }
    config = {"quantization_config": quantization | options}
    with open_safetensors(write_folder(tmp_path / "m", tensors, config)) as checkpoint:
        assert [name for name in checkpoint.tensors if name != "y"] == ["x.weight"]
        return checkpoint.tensors["x.weight"]


@pytest.mark.parametrize("rows", [slice(None), slice(3, 9), np.array([31, 0, 17])])
@pytest.mark.parametrize("case", GRIDS)
def test_values_and_codes_are_compressed_tensors_own(tmp_path, case, rows):
    y = np.ones((2, 2), np.float32)
    tensor = read(tmp_path, layer(case, input_scale=np.ones(1, np.float32)) | {"y": y})
    wanted = RECORDS[f"{case}/value"]
    assert (tensor.name, tensor.shape, tensor.grid) == ("x.weight", wanted.shape, GRIDS[case])
    assert tensor.column_order is None
    np.testing.assert_array_equal(tensor.values(rows), wanted[rows])
    if tensor.grid is None:
        return
    codes = tensor.codes(rows)
    assert codes.codes.dtype == (np.uint8 if tensor.grid.has_offsets else np.int8)
    values = codes.codes * np.repeat(codes.scales, tensor.grid.group, axis=1)
    if codes.offsets is None:
        np.testing.assert_array_equal(values, wanted[rows])
    else:  # with scales in float32 the sum rounds once more
        values += np.repeat(codes.offsets, tensor.grid.group, axis=1)
        np.testing.assert_allclose(values, wanted[rows], rtol=0, atol=1e-6 * np.ptp(wanted))


def test_act_order(tmp_path):
    order = np.random.default_rng(0).permutation(np.arange(96) // 32).astype(np.int32)
    tensor = read(tmp_path / "ordered", layer("int4", weight_g_idx=order))
    plain = read(tmp_path / "plain", layer("int4"))
    np.testing.assert_array_equal(order[tensor.column_order], np.arange(96) // 32)
    scales = RECORDS["int4/weight_scale"][:, order]
    codes = plain.codes(slice(None)).codes
    np.testing.assert_array_equal(tensor.values(slice(None)), codes * scales)
    unset = read(tmp_path / "unset", layer("int4", weight_g_idx=np.full(96, -1, np.int32)))
    assert unset.column_order is None
    np.testing.assert_array_equal(unset.values(slice(None)), plain.values(slice(None)))


SCALE = RECORDS["int4/weight_scale"]


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("int4", {"weight_scale": None}, "'x' has no 'weight_scale'"),
        ("int4", {"weight_shape": None}, "'x' has no 'weight_shape'"),
        ("int4", {"weight_shape": np.array([32, 0])}, r"packs a matrix \[32, 0\] into words"),
        ("int4", {"weight_shape": np.array([32, -96])}, r"packs a matrix \[32, -96\]"),
        ("int4", {"weight_shape": np.array([31, 96])}, r"matrix \[31, 96\] into words \[32, 12\]"),
        ("int4", {"weight_shape": np.array([32, 80])}, "which cannot be"),
        ("int4", {"weight_shape": np.array([32, 2**62])}, "which cannot be"),
        ("int4", {"weight_shape": np.ones(3, np.int64)}, "'weight_shape' of dtype I64"),
        ("int4", {"weight_packed": SCALE}, "expected a matrix of I32"),
        ("int4", {"weight_scale": SCALE[:, :2].repeat(32, 1)}, "where groups divide 96"),
        ("int4", {"weight_scale": SCALE[:31]}, r"F32 and shape \[31, 3\]"),
        ("int4", {"weight_scale": SCALE.astype(np.int32)}, "of dtype I32"),
        ("int4", {"weight": SCALE}, "is there packed and as it is"),
        ("int4", {"weight_g_idx": np.full(96, 3, np.int32)}, "groups beyond its 3"),
        ("int4", {"weight_g_idx": np.zeros(95, np.int32)}, "'weight_g_idx' of dtype I32"),
        (
            "int3_asym",
            {
                "weight_packed": RECORDS["int3_asym/weight_packed"][:31],
                "weight_scale": SCALE[:31],
                "weight_shape": np.array([31, 96]),
            },
            "31 outputs, which do not fill words of 3-bit zero points",
        ),
        ("int4_asym", {"weight_zero_point": SCALE}, "'weight_zero_point' of dtype F32"),
        ("int8_asym", {"weight_zero_point": SCALE}, "'weight_zero_point' of dtype F32"),
        ("fp8", {"weight_scale": SCALE}, r"of shape \[32, 3\] fits no"),
        ("fp8", {"weight": None}, "scales of no tensor"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, case, changes, message):
    with pytest.raises(ModelFormatError, match=message):
        read(tmp_path, layer(case, **changes))


@pytest.mark.parametrize(
    "options",
    [
        {"format": "nvfp4-pack-quantized"},
        {"config_groups": {"group_0": {"format": "mxfp4-pack-quantized"}}},
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        {"format": ["x"]},
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path, options):
    with pytest.raises(UnsupportedModelError, match=r"compressed as .*; supported: pack-quant"):
        read(tmp_path, layer("int4"), **options)


@pytest.mark.parametrize("groups", [None, [], "x", {"group_0": None}, {"group_0": {"weights": 1}}])
def test_config_groups_that_say_nothing(tmp_path, groups):
    read(tmp_path, layer("int4"), config_groups=groups)
