"""Matrices in a graph: what they compute, and that the CPU plugin multiplies by their codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from export.small_tensors import ArrayTensor, GridTensor
from openvino import opset15 as op

from ovgen.export.checkpoint import Grid, Tensor
from ovgen.export.graph_weights import embedding, linear, linears, matrix, tied_linear
from ovgen.export.matrices import Format, Matrix, SquaredError
from ovgen.export.weight_store import MODEL_XML, WeightStore
from ovgen.export.weights import MatrixRequest, read_matrix

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
ROWS, COLS = 192, 256
RNG = np.random.default_rng(0)
WEIGHT = (RNG.standard_normal((ROWS, COLS)) * 0.05).astype(np.float32)
X = RNG.standard_normal((2, 5, COLS)).astype(np.float32)

# The largest relative error of the weights, and the plugin's type of them.
FORMATS: dict[str, tuple[Format, float, str]] = {
    "fp32": (Format("dense", "f32"), 0, "f32"),
    "fp16": (Format("dense", "f16"), 3e-4, "f16"),
    "bf16": (Format("dense", "bf16"), 2e-3, "bf16"),
    "int8_sym": (Format("int8_sym", "f16", 64), 0.007, "i8"),
    "int8_sym, a row": (Format("int8_sym", "f16", COLS), 0.009, "i8"),
    "int8_asym": (Format("int8_asym", "f16", 64), 0.006, "u8"),
    "int8_asym, a row": (Format("int8_asym", "f16", COLS), 0.008, "u8"),
    "int4_sym": (Format("int4_sym", "f16", 64, search=True), 0.1, "i4"),
    "int4_sym, a row": (Format("int4_sym", "f16", COLS, search=True), 0.12, "i4"),
    "int4_asym": (Format("int4_asym", "f16", 64, search=True), 0.095, "u4"),
    "int4_asym, a row": (Format("int4_asym", "f16", COLS), 0.12, "u4"),
    "nf4": (Format("nf4", "f16", 64, search=True), 0.09, "nf4"),
}
GRIDS = {
    "Q8_0": (Grid(8, 32, False), False, "i8"),
    "Q6_K": (Grid(6, 16, False), False, "i8"),
    "Q5_1": (Grid(5, 32, True), False, "i8"),
    "Q4_0": (Grid(4, 32, False), False, "i4"),
    "Q4_1": (Grid(4, 32, True), False, "i4"),
    "Q3_K": (Grid(3, 16, False), False, "i4"),
    "Q2_K": (Grid(2, 16, True), False, "i4"),
    "GPTQ": (Grid(4, 64, True, True), False, "u4"),
    "GPTQ 8 bit": (Grid(8, 64, True, True), False, "u8"),
    "act-order": (Grid(4, 64, True, True), True, "u4"),
    "act-order, offsets": (Grid(4, 64, True), True, "i4"),
}


def compiled(
    build: Callable[[Any, Matrix], Any],
    request: MatrixRequest,
    folder: Path,
    x: Any = None,
) -> tuple[ov.CompiledModel, list[SquaredError]]:
    """The graph of one matrix, saved and read back."""
    if x is None:
        x = op.parameter([-1, -1, COLS], ov.Type.f32)
    with WeightStore(folder) as store:
        weight, errors = read_matrix(request, store)
        results = [op.result(y) for y in _list(build(x, weight))]
        store.save(ov.Model(results, [x, *store.placeholders], "test"))
    model = ov.Core().read_model(folder / MODEL_XML)
    return ov.Core().compile_model(model, "CPU", EXACT), errors


def _list(values: Any) -> Sequence[Any]:
    return values if isinstance(values, list) else [values]


def weight_types(model: ov.CompiledModel) -> list[str]:
    """The types of the weights of all fully-connected nodes."""
    return [
        node.input_value(1).get_element_type().get_type_name()
        for node in model.get_runtime_model().get_ordered_ops()
        if node.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    ]


def relative(values: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.square(values - expected).mean() / np.square(expected).mean()))


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str, tmp_path: Path) -> None:
    fmt, limit, dtype = FORMATS[name]
    model, errors = compiled(linear, MatrixRequest([ArrayTensor("w", WEIGHT)], fmt), tmp_path)
    y = model([X])[0]
    assert relative(y, X @ WEIGHT.T) < limit + 1e-5
    assert errors[0].relative_rms <= limit
    assert errors[0].relative_rms == pytest.approx(relative(y, X @ WEIGHT.T), rel=0.1, abs=1e-6)
    assert weight_types(model)[0] == dtype


@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_kept(name: str, dtype: Any, tmp_path: Path) -> None:
    grid, shuffle, expected_type = GRIDS[name]
    tensor = GridTensor("w", (ROWS, COLS), grid, shuffle=shuffle)
    request = MatrixRequest([tensor], Format("codes", dtype, grid=grid))
    model, errors = compiled(linear, request, tmp_path)
    y = model([X])[0]
    # Scales are halves here; so are offsets, but for what they are moved by to centre the codes.
    assert relative(y, X @ tensor.array.T) < (1e-6 if dtype == "f32" else 3e-4)
    assert errors[0].relative_rms < 3e-4
    assert weight_types(model)[0] == expected_type
    assert len(weight_types(model)) == (2 if grid.has_offsets and not grid.has_zero_points else 1)


def test_a_matrix_of_several_tensors(tmp_path: Path) -> None:
    sizes = [64, 32, 96]
    parts = np.split(WEIGHT, np.cumsum(sizes)[:-1])
    tensors: list[Tensor] = [ArrayTensor(f"w{i}", part) for i, part in enumerate(parts)]
    bias = RNG.standard_normal(ROWS).astype(np.float32)

    def build(x: Any, weight: Matrix) -> list[Any]:
        return linears(x, [weight], sizes, bias)

    request = MatrixRequest(tensors, Format("int8_sym", "f16", 64))
    model, errors = compiled(build, request, tmp_path)
    results = model([X])
    for i, expected in enumerate(np.split(X @ WEIGHT.T + bias, np.cumsum(sizes)[:-1], axis=-1)):
        assert relative(results[i], expected) < 0.01
    assert len(errors) == len(sizes)
    assert weight_types(model) == ["i8"]


@pytest.mark.parametrize("name", ["fp16", "int8_sym", "int8_asym, a row", "int4_sym"])
def test_a_table_is_looked_up_and_multiplied(name: str, tmp_path: Path) -> None:
    fmt, limit, dtype = FORMATS[name]
    ids = op.parameter([-1, -1], ov.Type.i64)

    def build(ids: Any, weight: Matrix) -> list[Any]:
        table = matrix(weight)
        x = embedding(table, ids)
        return [x, tied_linear(x, table)]

    request = MatrixRequest([ArrayTensor("w", WEIGHT)], fmt)
    model, _ = compiled(build, request, tmp_path, ids)
    rows = np.array([[3, 0, 191]])
    results = model([rows])
    assert relative(results[0], WEIGHT[rows]) < 1.5 * limit
    assert relative(results[1], WEIGHT[rows] @ WEIGHT.T) < 2 * limit
    assert weight_types(model) == [dtype]


@pytest.mark.parametrize("name", ["fp32", "int8_sym", "int4_asym", "int8_sym, a row"])
def test_a_batch_of_experts(name: str, tmp_path: Path) -> None:
    fmt, limit, _ = FORMATS[name]
    experts = WEIGHT.reshape(3, 64, COLS)
    x = op.parameter([3, -1, COLS], ov.Type.f32)
    whole = MatrixRequest([ArrayTensor("w", experts)], fmt, experts=3)
    alone = MatrixRequest([ArrayTensor(f"w{i}", experts[i]) for i in range(3)], fmt, experts=3)
    tokens = RNG.standard_normal((3, 4, COLS)).astype(np.float32)
    results = []
    for i, request in enumerate((whole, alone)):
        folder = tmp_path / str(i)
        folder.mkdir()
        model, errors = compiled(linear, request, folder, x)
        assert len(errors) == len(request.tensors)
        results.append(model([tokens])[0])
    expected = tokens @ experts.swapaxes(1, 2)
    assert relative(results[0], expected) <= limit + 1e-6
    np.testing.assert_array_equal(results[0], results[1])
