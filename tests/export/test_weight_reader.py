"""Tensors by name: their shapes are checked, and none may be left over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from ovgen.errors import ModelFormatError
from ovgen.export.checkpoint import Codes, Floats, Grid, Rows, Tensor
from ovgen.export.compression import CompressionConfig
from ovgen.export.graph_weights import matrix
from ovgen.export.matrices import Matrix
from ovgen.export.weight_reader import WeightReader
from ovgen.export.weight_store import WeightStore

COLS = 64


@dataclass(eq=False)
class FakeTensor:
    """A tensor in memory."""

    name: str
    array: Floats
    grid: Grid | None = None
    dtype: str = "F32"
    column_order: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def values(self, rows: Rows) -> Floats:
        return self.array.reshape(-1, self.array.shape[-1])[rows]

    def codes(self, rows: Rows) -> Codes:
        raise NotImplementedError


@dataclass
class FakeCheckpoint:
    """A checkpoint in memory that counts how often its pages were let go."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    path: Path = Path("model")
    num_released: int = 0

    def release_pages(self) -> None:
        self.num_released += 1

    def close(self) -> None:
        return


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WeightStore]:
    with WeightStore(tmp_path) as store:
        yield store


def checkpoint(**shapes: tuple[int, ...]) -> FakeCheckpoint:
    random = np.random.default_rng(3)
    names = {key.replace("__", "."): shape for key, shape in shapes.items()}
    return FakeCheckpoint(
        {
            name: FakeTensor(name, random.standard_normal(shape).astype(np.float32))
            for name, shape in names.items()
        }
    )


def stored(matrices: list[Matrix], store: WeightStore, folder: Path) -> list[np.ndarray]:
    """The values of matrices as the saved IR has them."""
    unused = op.parameter([1], ov.Type.f32)
    results = [op.result(matrix(each)) for each in matrices]
    store.save(ov.Model(results, [unused, *store.placeholders], "matrices"))
    compiled = ov.Core().compile_model(folder / "openvino_model.xml", "CPU")
    return [value.copy() for value in compiled([np.zeros(1, np.float32)]).values()]


def test_vectors_and_arrays(store: WeightStore):
    source = checkpoint(norm__weight=(COLS,), heads__weight=(4, 16))
    reader = WeightReader(source, "fp32", store)
    wanted = source.tensors["norm.weight"].values(slice(None))[0]
    np.testing.assert_array_equal(reader.vector("norm.weight", COLS), wanted)
    wanted = source.tensors["heads.weight"].values(slice(None))
    np.testing.assert_array_equal(reader.array("heads.weight", (4, 16)), wanted)
    reader.refuse_unread()


def test_matrices_in_the_order_that_is_asked_for(store: WeightStore, tmp_path: Path):
    source = checkpoint(a__weight=(8, COLS), b__weight=(4, COLS), c__weight=(4, COLS))
    reader = WeightReader(source, "fp32", store)
    order = np.array([3, 1, 0, 2])
    one = reader.matrix("a.weight", (8, COLS))
    stacked = reader.stack([("b.weight", 4), ("c.weight", 4)], COLS, orders=[order, None])
    assert len(stacked) == 1
    a, bc = stored([one, *stacked], store, tmp_path)
    values = {name: tensor.values(slice(None)) for name, tensor in source.tensors.items()}
    np.testing.assert_array_equal(a, values["a.weight"])
    wanted = np.concatenate([values["b.weight"][order], values["c.weight"]])
    np.testing.assert_array_equal(bc, wanted)
    assert source.num_released


def test_formats_that_differ_are_not_stacked(store: WeightStore):
    source = checkpoint(a__weight=(4, COLS), b__weight=(4, COLS))
    source.tensors["b.weight"].dtype = "F16"  # type: ignore[misc]
    reader = WeightReader(source, "exact", store)
    assert len(reader.stack([("a.weight", 4), ("b.weight", 4)], COLS)) == 2


def test_parts_of_a_tensor(store: WeightStore, tmp_path: Path):
    source = checkpoint(mlp__0__both__weight=(12, COLS))
    config = CompressionConfig(mode="fp32", overrides=(("*.both.weight", "fp16"),))
    reader = WeightReader(source, config, store)
    names = ["mlp.0.gate.weight", "mlp.0.up.weight"]
    parts = reader.parts("mlp.0.both.weight", list(zip(names, (8, 4), strict=True)), COLS)
    wanted = source.tensors["mlp.0.both.weight"].values(slice(None)).astype(np.float16)
    for found, part in zip(stored(parts, store, tmp_path), np.split(wanted, [8]), strict=True):
        np.testing.assert_array_equal(found, part)
    reader.refuse_unread()
    assert {record.name: record.fmt for record in reader.report.records} == dict.fromkeys(
        names, "fp16"
    )
    with pytest.raises(ModelFormatError, match=r"\(12, 64\), the config asks for \(8, 64\)"):
        reader.parts("mlp.0.both.weight", [(names[0], 4), (names[1], 4)], COLS)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("x.weight", (4, COLS), "model: the tensor 'x.weight' is missing"),
        ("a.weight", (4, 32), r"'a.weight' has shape \(4, 64\), the config asks for \(4, 32\)"),
        ("v.bias", (1, COLS), r"'v.bias' has shape \(64,\), the config asks for \(1, 64\)"),
    ],
)
def test_what_does_not_fit(store: WeightStore, name: str, shape: tuple[int, int], says: str):
    reader = WeightReader(checkpoint(a__weight=(4, COLS), v__bias=(COLS,)), "fp32", store)
    with pytest.raises(ModelFormatError, match=says):
        reader.matrix(name, shape)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(store: WeightStore, value: float):
    source = checkpoint(v__bias=(COLS,))
    source.tensors["v.bias"].array[3] = value  # type: ignore[attr-defined]
    with pytest.raises(ModelFormatError, match=r"'v\.bias' holds a value that is not finite"):
        WeightReader(source, "fp32", store).vector("v.bias", COLS)


def test_a_tensor_that_is_left_over(store: WeightStore):
    source = checkpoint(a__weight=(4, COLS), b__weight=(4, COLS), c__bias=(COLS,))
    reader = WeightReader(source, "fp32", store)
    reader.matrix("a.weight", (4, COLS))
    with pytest.raises(ModelFormatError, match=r"2 tensors do not .* first are b\.weight, c\.bias"):
        reader.refuse_unread()
    reader.ignore("c.bias")
    with pytest.raises(ModelFormatError, match=r"1 tensors do not .* first are b\.weight"):
        reader.refuse_unread()
    reader.ignore("b.weight")
    reader.ignore("never.there")
    reader.refuse_unread()


def test_what_follows_from_the_config_may_be_left_over(store: WeightStore):
    source = checkpoint(
        model__layers__0__self_attn__rotary_emb__inv_freq=(8,),
        h__0__attn__bias=(1, 1, 8, 8),
        h__0__attn__masked_bias=(1,),
        gpt_neox__layers__0__attention__bias=(1, 1, 8, 8),
    )
    WeightReader(source, "fp32", store).refuse_unread()


def test_a_bias_of_zeros_may_be_left_over(store: WeightStore):
    source = checkpoint(a__bias=(COLS,))
    source.tensors["a.bias"].array[:] = 0  # type: ignore[attr-defined]
    WeightReader(source, "fp32", store).refuse_unread()
    source.tensors["a.bias"].array[-1] = 1e-6  # type: ignore[attr-defined]
    with pytest.raises(ModelFormatError, match=r"a\.bias"):
        WeightReader(source, "fp32", store).refuse_unread()
