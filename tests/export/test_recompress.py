"""IRs with their weights stored in another way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from export.small_tensors import ArrayTensor, GridTensor
from openvino import opset15 as op

from ovgen.errors import ConfigError, ModelFormatError, ModelNotFoundError, UnsupportedModelError
from ovgen.export.checkpoint import Grid
from ovgen.export.compression import CompressionConfig
from ovgen.export.compression_report import CompressionReport
from ovgen.export.graph_weights import embedding, linear, matrix, tied_linear
from ovgen.export.ir_weights import IRCheckpoint
from ovgen.export.matrices import Format
from ovgen.export.recompress import recompress_model
from ovgen.export.weight_store import MODEL_BIN, MODEL_XML, WeightStore
from ovgen.export.weights import MatrixRequest, read_matrix

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
VOCAB, HIDDEN, INNER = 48, 96, 160
RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((VOCAB, HIDDEN)).astype(np.float32)
UP = (RNG.standard_normal((INNER, HIDDEN)) * 0.1).astype(np.float32)
DOWN = (RNG.standard_normal((HIDDEN, INNER)) * 0.1).astype(np.float32)
IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def write_ir(folder: Path, fmt: Format) -> Path:
    """A table, two matrices and the table again, as the head."""
    folder.mkdir()
    ids = op.parameter([-1, -1], ov.Type.i64)
    with WeightStore(folder) as store:

        def weight(name: str, values: np.ndarray) -> Any:
            return read_matrix(MatrixRequest([ArrayTensor(name, values)], fmt), store)[0]

        table = matrix(weight("model.embed_tokens.weight", TABLE))
        x = embedding(table, ids)
        h = linear(x, weight("model.layers.0.mlp.up_proj.weight", UP))
        h = linear(op.tanh(h), weight("model.layers.0.mlp.down_proj.weight", DOWN))
        logits = tied_linear(op.add(x, h), table)
        store.save(ov.Model([op.result(logits)], [ids, *store.placeholders], "tiny"))
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny"}))
    (folder / "openvino_config.json").write_text("{}")
    (folder / "more").mkdir()
    (folder / "more" / "file").write_text("kept")
    return folder


def logits(folder: Path) -> np.ndarray:
    model = ov.Core().compile_model(folder / MODEL_XML, "CPU", EXACT)
    return np.array(model([IDS])[0])


def expected() -> np.ndarray:
    x = TABLE[IDS]
    return (x + np.tanh(x @ UP.T) @ DOWN.T) @ TABLE.T


def relative(values: np.ndarray, reference: np.ndarray) -> float:
    return float(np.sqrt(np.square(values - reference).mean() / np.square(reference).mean()))


@pytest.fixture(scope="module")
def float_ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ir(tmp_path_factory.mktemp("float") / "ir", Format("dense", "f32"))


@pytest.mark.parametrize(
    ("mode", "limit"),
    [
        ("fp32", 1e-6),
        ("fp16", 1e-3),
        ("bf16", 8e-3),
        ("int8_sym", 0.02),
        ("int8_asym", 0.02),
        ("int4_sym", 0.1),
        ("int4_asym", 0.1),
        ("nf4", 0.1),
    ],
)
def test_modes(float_ir: Path, mode: str, limit: float, tmp_path: Path) -> None:
    reports: list[CompressionReport] = []
    folder = tmp_path / "out"
    result = recompress_model(float_ir, folder, weights=mode, on_report=reports.append)
    assert result == folder
    assert relative(logits(folder), expected()) < limit
    kinds = {row.label: row.formats[0] for row in reports[0].by_kind()}
    assert list(kinds) == ["embed_tokens", "up_proj", "down_proj"]
    assert kinds["down_proj"].startswith(mode)
    assert kinds["embed_tokens"].startswith(mode if mode[:2] in ("fp", "bf") else "int8")
    assert {path.name for path in folder.iterdir()} == {MODEL_XML, MODEL_BIN, "config.json", "more"}
    assert (folder / "more" / "file").read_text() == "kept"


@pytest.mark.parametrize(
    "fmt",
    [
        Format("dense", "f16"),
        Format("dense", "bf16"),
        Format("int8_sym", "f16", 32),
        Format("int8_asym", "f32", 32),
        Format("int4_sym", "f16", 32),
        Format("int4_asym", "f16", 32),
        Format("nf4", "f16", 32),
    ],
)
def test_compressed_irs_are_read_as_they_compute(fmt: Format, tmp_path: Path) -> None:
    source = write_ir(tmp_path / "in", fmt)
    recompress_model(source, tmp_path / "out", weights="fp32")
    # The plugin rounds the levels of NF4 to halves.
    assert relative(logits(tmp_path / "out"), logits(source)) < (
        3e-4 if fmt.kind == "nf4" else 3e-6
    )
    smaller = CompressionConfig(mode="int4_asym", group_size=32)
    recompress_model(tmp_path / "out", tmp_path / "again", weights=smaller)
    assert relative(logits(tmp_path / "again"), logits(source)) < 0.1


def test_offsets_that_an_ir_has_stay(tmp_path: Path) -> None:
    ids = op.parameter([-1, -1, HIDDEN], ov.Type.f32)
    tensor = GridTensor("model.layers.0.w.weight", (64, HIDDEN), Grid(4, 32, True))
    source = tmp_path / "in"
    source.mkdir()
    with WeightStore(source) as store:
        request = MatrixRequest([tensor], Format("codes", "f32", grid=tensor.grid))
        y = linear(ids, read_matrix(request, store)[0])
        store.save(ov.Model([op.result(y)], [ids, *store.placeholders], "tiny"))
    recompress_model(source, tmp_path / "out", weights="fp32")
    x = RNG.standard_normal((1, 3, HIDDEN)).astype(np.float32)
    model = ov.Core().compile_model(tmp_path / "out" / MODEL_XML, "CPU", EXACT)
    assert relative(model([x])[0], x @ tensor.array.T) < 1e-6


def nncf_like(folder: Path, rows: int, cols: int, group: int, *, transpose: bool) -> np.ndarray:
    """A matmul as NNCF leaves it: u4 codes with u4 zero points, their rows not of whole bytes."""
    shape = [rows, cols // group, group]
    codes = RNG.integers(0, 16, shape).astype(np.uint8)
    zeros = RNG.integers(0, 16, [*shape[:2], 1]).astype(np.uint8)
    scales = RNG.uniform(0.01, 0.02, zeros.shape).astype(np.float16)

    def u4(values: np.ndarray) -> Any:
        flat = np.append(values.reshape(-1), np.zeros(values.size % 2, np.uint8))
        packed = (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8)
        tensor = ov.Tensor(packed, ov.Shape(list(values.shape)), ov.Type.u4)
        return ov.op.Constant(tensor, shared_memory=False)

    constant = u4(codes)
    constant.set_friendly_name("self.model.layers.3.mlp.up_proj.weight")
    weight = op.subtract(op.convert(constant, "f16"), op.convert(u4(zeros), "f16"))
    weight = op.reshape(op.multiply(weight, op.constant(scales)), np.array([rows, cols]), False)
    x = op.parameter([-1, -1, cols if transpose else rows], ov.Type.f32)
    y = op.matmul(x, op.convert(weight, "f32"), False, transpose)
    ov.save_model(ov.Model([op.result(y)], [x], "nncf"), folder / MODEL_XML, False)
    values = (codes.astype(np.float32) - zeros) * scales.astype(np.float32)
    return values.reshape(rows, cols)


@pytest.mark.parametrize("group", [32, 96])
def test_the_form_of_nncf(group: int, tmp_path: Path) -> None:
    values = nncf_like(tmp_path, 5, 96, group, transpose=True)
    with IRCheckpoint(tmp_path) as ir:
        ((name, tensor),) = ir.tensors.items()
        assert name == "model.layers.3.mlp.up_proj.weight"
        assert tensor.dtype == "u4"
        np.testing.assert_array_equal(tensor.values(slice(0, 5)), values)
        np.testing.assert_array_equal(tensor.values(np.array([4, 1])), values[[4, 1]])


def test_a_graph_without_known_weights_is_refused(tmp_path: Path) -> None:
    nncf_like(tmp_path, 64, 96, 32, transpose=False)
    with pytest.raises(UnsupportedModelError, match="no weights of a known form"):
        recompress_model(tmp_path, tmp_path / "out", weights="fp16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["auto", "exact"])
def test_modes_without_effect_are_refused(float_ir: Path, mode: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is exported already"):
        recompress_model(float_ir, tmp_path / "out", weights=mode)


def cut(name: str, size: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return change


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (cut(MODEL_XML, 3000), ModelFormatError),
        (cut(MODEL_BIN, 5000), ModelFormatError),
        (cut(MODEL_BIN, 0), ModelFormatError),
        (lambda folder: (folder / MODEL_BIN).unlink(), ModelNotFoundError),
        (lambda folder: (folder / "config.json").write_text("["), ModelFormatError),
    ],
)
def test_damaged_irs_are_refused(
    change: Callable[[Path], None], error: type[Exception], tmp_path: Path
) -> None:
    source = write_ir(tmp_path / "in", Format("int8_sym", "f16", 32))
    change(source)
    with pytest.raises(error):
        recompress_model(source, tmp_path / "out", weights="fp16")
    assert not (tmp_path / "out").exists()
