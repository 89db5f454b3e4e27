"""Views of tensors against numpy's own indexing of the values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from small_tensors import ArrayTensor

from ovgen.export import tensor_views
from ovgen.export.checkpoint import Codes, Floats, Grid, Rows
from ovgen.export.tensor_views import (
    AlternatingColumns,
    AlternatingTensor,
    OrderedTensor,
    ShiftedTensor,
    SlicedTensor,
    TensorView,
    TransposedTensor,
    halves_first,
    parts_first,
)

GROUP = 8
SOME_ROWS = [slice(None), slice(3, 9), slice(5, 6), np.array([7, 0, 3, 3])]
ROWS = [slice(None), slice(3, 17), slice(11, 30), np.array([29, 0, 14, 13, 5])]


@dataclass(eq=False)
class GridTensor:
    """A tensor on a grid of 8 bits with offsets, in memory."""

    name: str
    shape: tuple[int, ...]
    seed: int
    dtype: str = "Q"
    column_order: Any = None
    grid: Grid | None = Grid(8, GROUP, True)  # noqa: RUF009

    def codes(self, rows: Rows) -> Codes:
        random = np.random.default_rng(self.seed)
        height, width = int(np.prod(self.shape[:-1])), self.shape[-1]
        codes = random.integers(0, 256, (height, width)).astype(np.uint8)
        scales = random.uniform(0.5, 1.5, (height, width // GROUP)).astype(np.float32)
        offsets = random.uniform(-9, 9, scales.shape).astype(np.float32)
        return Codes(codes[rows], scales[rows], offsets[rows])

    def values(self, rows: Rows) -> Floats:
        return values_of(self.codes(rows))

    @property
    def array(self) -> np.ndarray:
        """All values in the tensor's shape."""
        return self.values(slice(None)).reshape(self.shape)


def values_of(codes: Codes) -> Floats:
    """What codes stand for."""
    grouped = codes.codes.reshape(*codes.scales.shape, GROUP).astype(np.float32)
    assert codes.offsets is not None
    values = grouped * codes.scales[..., None] + codes.offsets[..., None]
    return np.asarray(values.reshape(len(grouped), -1), np.float32)


MATRIX = GridTensor("matrix", (12, 16), 1)
STACK = GridTensor("stack", (3, 4, 16), 2)
OTHER = GridTensor("other", (3, 4, 16), 3)
ORDER = np.array([3, 1, 0, 2, 11, 10, 9, 8, 7, 6, 5, 4])
ALTERNATING = np.stack([STACK.array, OTHER.array], axis=2).reshape(3, 8, 16)

VIEWS: dict[str, tuple[TensorView, np.ndarray]] = {
    "plain": (TensorView(MATRIX, "view"), MATRIX.array),
    "ordered": (OrderedTensor(MATRIX, "view", ORDER), MATRIX.array[ORDER]),
    "sliced": (SlicedTensor(MATRIX, "view", 2, 10), MATRIX.array[2:12]),
    "expert": (SlicedTensor(GridTensor("stack", (2, 10, 16), 2), "view", 10, 10),
               GridTensor("stack", (2, 10, 16), 2).array[1]),
    "alternating": (AlternatingTensor(STACK, "view", OTHER), ALTERNATING),
    "shifted": (ShiftedTensor(MATRIX, "view", -1.0), MATRIX.array - np.float32(1)),
    "alternating columns": (
        AlternatingColumns(MATRIX, "view", GridTensor("other", (12, 16), 4)),
        np.stack([MATRIX.array, GridTensor("other", (12, 16), 4).array], axis=-1).reshape(12, 32),
    ),
}  # fmt: skip


@pytest.mark.parametrize("rows", SOME_ROWS, ids=str)
@pytest.mark.parametrize("name", VIEWS)
def test_values(name: str, rows: Rows):
    view, wanted = VIEWS[name]
    assert view.shape == wanted.shape
    assert (view.name, view.dtype, view.column_order) == ("view", "Q", None)
    found = view.values(rows)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted.reshape(-1, wanted.shape[-1])[rows])


@pytest.mark.parametrize("rows", SOME_ROWS, ids=str)
@pytest.mark.parametrize("name", ["plain", "ordered", "sliced", "expert", "alternating"])
def test_codes(name: str, rows: Rows):
    view, wanted = VIEWS[name]
    assert view.grid == MATRIX.grid
    found = values_of(view.codes(rows))
    np.testing.assert_array_equal(found, wanted.reshape(-1, wanted.shape[-1])[rows])


@pytest.mark.parametrize(
    "view", [TransposedTensor(MATRIX, "view"), VIEWS["alternating columns"][0]]
)
def test_columns_have_no_grid(view: TensorView):
    assert view.grid is None


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("block", [4, 5, 256])
def test_a_transposed_matrix(rows: slice | np.ndarray, block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tensor_views, "_BLOCK_ROWS", block)
    array = np.random.default_rng(0).standard_normal((7, 30)).astype(np.float32)
    view = TransposedTensor(ArrayTensor("w", array), "w")
    assert view.shape == (30, 7)
    np.testing.assert_array_equal(view.values(rows), array.T[rows])


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("block", [4, 256])
def test_transposed_experts(rows: slice | np.ndarray, block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tensor_views, "_BLOCK_ROWS", block)
    array = np.random.default_rng(0).standard_normal((3, 7, 10)).astype(np.float32)
    view = TransposedTensor(ArrayTensor("w", array), "w")
    assert view.shape == (3, 10, 7)
    expected = array.transpose(0, 2, 1).reshape(30, 7)[rows]
    np.testing.assert_array_equal(view.values(rows), expected)


def test_a_vector_is_ordered_too():
    vector = GridTensor("vector", (16,), 5)
    order = np.arange(16)[::-1]
    found = OrderedTensor(vector, "view", order).values(slice(None))
    np.testing.assert_array_equal(found, vector.array[None, ::-1])


def test_a_vector_is_sliced_too():
    vector = GridTensor("vector", (16,), 5)
    view = SlicedTensor(vector, "view", 4, 8)
    assert view.shape == (8,)
    np.testing.assert_array_equal(view.values(slice(None)), vector.array[None, 4:12])


def test_halves_first():
    assert halves_first(1, 6).tolist() == [0, 2, 4, 1, 3, 5]
    assert halves_first(2, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert halves_first(2, 6, 4).tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]


def test_the_parts_of_a_fused_projection():
    # Two groups of two queries, a key and a value, two rows each.
    order = parts_first(2, 2, 2)
    queries, keys, values = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 12, 13], [6, 7, 14, 15]
    assert order.tolist() == queries + keys + values
