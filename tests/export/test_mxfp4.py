"""MXFP4 experts against transformers' dequantization (tests/oracles/packed_checkpoints.py)."""

from pathlib import Path

import numpy as np
import pytest
from safetensors_files import write_folder

from ovgen.errors import ModelFormatError
from ovgen.export.checkpoint import Grid
from ovgen.export.safetensors_checkpoint import open_safetensors

RECORDS = np.load(Path(__file__).parents[1] / "data" / "packed_llama.npz")
BLOCKS, SCALES = RECORDS["mxfp4/blocks"], RECORDS["mxfp4/scales"]  # [2, 6, 2, 16], [2, 6, 2]
VALUES = RECORDS["mxfp4/values"].swapaxes(1, 2).reshape(12, 64)
CONFIG = {"quantization_config": {"quant_method": "mxfp4"}}


def read(tmp_path, blocks=BLOCKS, scales=SCALES):
    tensors = {"x_blocks": blocks, "x_scales": scales, "x_bias": np.ones(3, np.float32)}
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with open_safetensors(write_folder(tmp_path / "m", present, CONFIG)) as checkpoint:
        assert sorted(checkpoint.tensors) == ["x.weight", "x_bias"]
        return checkpoint.tensors["x.weight"]


@pytest.mark.parametrize("rows", [slice(None), slice(5, 8), np.array([11, 0])])
def test_values_and_codes_are_transformers(tmp_path, rows):
    tensor = read(tmp_path)
    assert (tensor.name, tensor.shape, tensor.dtype) == ("x.weight", (2, 6, 64), "MXFP4")
    assert tensor.grid == Grid(8, 32, has_offsets=False)
    assert tensor.column_order is None
    np.testing.assert_array_equal(tensor.values(rows), VALUES[rows])
    codes = tensor.codes(rows)
    assert codes.codes.dtype == np.int8
    assert codes.offsets is None
    values = codes.codes * np.repeat(codes.scales, 32, axis=1)
    np.testing.assert_array_equal(values, VALUES[rows])


@pytest.mark.parametrize(
    ("blocks", "scales", "message"),
    [
        (BLOCKS, None, "'x_blocks' has no '_scales'"),
        (BLOCKS[..., :15], SCALES, r"shape \[2, 6, 2, 15\] and \[2, 6, 2\], expected U8"),
        (BLOCKS, SCALES[:1], r"\[2, 6, 2, 16\] and \[1, 6, 2\]"),
        (BLOCKS, SCALES.astype(np.int32), "are U8 and I32"),
        (BLOCKS[0, 0], SCALES[0, 0], r"\[2, 16\] and \[2\]"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, blocks, scales, message):
    with pytest.raises(ModelFormatError, match=message):
        read(tmp_path, blocks, scales)
