"""FP8 folders against transformers' dequantization (tests/oracles/packed_checkpoints.py)."""

from pathlib import Path

import numpy as np
import pytest
from safetensors_files import write_folder

from ovgen.errors import ModelFormatError, UnsupportedModelError
from ovgen.export.float_formats import to_float32
from ovgen.export.safetensors_checkpoint import open_safetensors

TESTS = Path(__file__).parents[1]
RECORDS = np.load(TESTS / "data" / "packed_llama.npz")
FOLDER = TESTS / "fixtures" / "packed" / "fp8"
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
RAW = np.random.default_rng(1).integers(0, 120, (6, 10), dtype=np.uint8)
VALUES = to_float32(RAW, "F8_E4M3")


def f8(raw: np.ndarray = RAW, shape=None):
    return ("F8_E4M3", raw.shape if shape is None else shape, raw.tobytes())


def values_of(tmp_path, tensors, **options) -> np.ndarray:
    folder = write_folder(tmp_path / "m", tensors, {"quantization_config": {**FP8, **options}})
    with open_safetensors(folder) as checkpoint:
        assert list(checkpoint.tensors) == ["x.weight"]
        return checkpoint.tensors["x.weight"].values(slice(None)).copy()


def test_blocks_as_transformers_has_them():
    names = [key.removeprefix("fp8/") for key in RECORDS.files if key.startswith("fp8/model")]
    assert len(names) == 7
    with open_safetensors(FOLDER) as checkpoint:
        assert not [name for name in checkpoint.tensors if "scale" in name]
        for name in names:
            tensor, wanted = checkpoint.tensors[name], RECORDS[f"fp8/{name}"]
            assert (tensor.dtype, tensor.shape, tensor.grid) == ("F8_E4M3", wanted.shape, None)
            np.testing.assert_array_equal(tensor.values(slice(None)), wanted)
            np.testing.assert_array_equal(tensor.values(slice(15, 18)), wanted[15:18])
            np.testing.assert_array_equal(tensor.values(np.array([31, 2])), wanted[[31, 2]])
        assert checkpoint.tensors["lm_head.weight"].dtype == "F16"


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("name", ["x.weight_scale", "x.weight_scale_inv"])
def test_one_scale_for_the_tensor(tmp_path, shape, name):
    scale = np.full(shape, 0.25, np.float32)
    tensors = {"x.weight": f8(), name: scale, "x.input_scale": np.ones(1, np.float32)}
    np.testing.assert_array_equal(values_of(tmp_path, tensors), VALUES / 4)


@pytest.mark.parametrize("method", ["fp8", "fbgemm_fp8"])
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_a_scale_for_each_row(tmp_path, shape, method):
    scale = np.arange(1, 7, dtype=np.float32).reshape(shape)
    tensors = {"x.weight": f8(), "x.weight_scale": scale, "x.input_scale_ub": scale[:1]}
    values = values_of(tmp_path, tensors, quant_method=method)
    np.testing.assert_array_equal(values, VALUES * scale.reshape(6, 1))


def test_blocks_that_are_cut_off(tmp_path):
    scale = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    tensors = {"x.weight": f8(), "x.weight_scale_inv": scale}
    values = values_of(tmp_path, tensors, weight_block_size=[4, 4])
    wanted = VALUES * np.kron(scale, np.ones((4, 4), np.float32))[:6, :10]
    np.testing.assert_array_equal(values, wanted)


def test_blocks_that_are_larger_than_the_tensor(tmp_path):
    scale = np.array([[0.5]], np.float32).repeat(2, axis=0)
    tensors = {"x.weight": f8(np.tile(RAW, (2, 1)), (2, 6, 10)), "x.weight_scale": scale[..., None]}
    values = values_of(tmp_path, tensors, weight_block_size=[2**30, 2**30])
    np.testing.assert_array_equal(values, np.tile(VALUES, (2, 1)) / 2)


def test_experts_in_one_tensor(tmp_path):
    scale = np.arange(1, 13, dtype=np.float32).reshape(2, 2, 3)
    raw = np.concatenate((RAW, RAW[::-1]))
    tensors = {"x.weight": f8(raw, (2, 6, 10)), "x.weight_scale_inv": scale}
    values = values_of(tmp_path, tensors, weight_block_size=[4, 4])
    for expert, part in enumerate((VALUES, VALUES[::-1])):
        blocks = np.kron(scale[expert], np.ones((4, 4), np.float32))[:6, :10]
        np.testing.assert_array_equal(values[expert * 6 : expert * 6 + 6], part * blocks)


def test_f8_without_scales_needs_no_config(tmp_path):
    with open_safetensors(write_folder(tmp_path / "m", {"x.weight": f8()})) as checkpoint:
        np.testing.assert_array_equal(checkpoint.tensors["x.weight"].values(slice(None)), VALUES)


SCALE = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("tensors", "options", "error", "message"),
    [
        ({"x.weight": f8(), "x.weight_scale": SCALE}, {}, ModelFormatError, r"\[2, 3\] fits no"),
        (
            {"x.weight": f8(), "x.weight_scale": SCALE},
            {"weight_block_size": [2, 4]},
            ModelFormatError,
            r"\[6, 10\] with blocks of \[2, 4\]",
        ),
        (
            {"x.weight": f8(), "x.weight_scale": SCALE.astype("i4")},
            {"weight_block_size": [4, 4]},
            ModelFormatError,
            "of dtype I32 cannot scale",
        ),
        ({"x.weight_scale": SCALE}, {}, ModelFormatError, "are the scales of no tensor"),
        (
            {"x.weight": np.ones((6, 10), "f4"), "x.weight_scale": SCALE},
            {},
            UnsupportedModelError,
            "'x.weight' of dtype F32 has scales",
        ),
        ({"x.weight": f8()}, {"weight_block_size": 128}, ModelFormatError, "is 128, expected two"),
        ({"x.weight": f8()}, {"weight_block_size": [0, 4]}, ModelFormatError, r"is \[0, 4\]"),
        ({"x.weight": f8()}, {"weight_block_size": [4, True]}, ModelFormatError, "expected two"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, tensors, options, error, message):
    with pytest.raises(error, match=message):
        values_of(tmp_path, tensors, **options)
