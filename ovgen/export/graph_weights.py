"""Weights in a graph: matrices decompressed where they are used, and what multiplies by them.

In these forms the CPU plugin runs a matmul on the codes themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from openvino import opset15 as op

from ovgen.export.matrices import DenseMatrix, Matrix, QuantizedMatrix

Value: TypeAlias = Any  # an ov.Node or ov.Output; every block maps values to values


def const(value: Any, dtype: type[Any] = np.int64) -> Value:
    """A constant; a list of integers unless said otherwise."""
    return op.constant(np.asarray(value, dtype))


def embedding(table: Value, token_ids: Value) -> Value:
    """Rows of a table: [batch, tokens] -> [batch, tokens, hidden]."""
    return op.gather(table, token_ids, const(0))


def matrix(weight: Matrix) -> Value:
    """A weight as float32 [rows, cols] or [experts, rows, cols], without its offsets.

    It is decompressed where it is used.
    """
    if isinstance(weight, DenseMatrix):
        return _as_f32(weight.values)
    dtype = weight.scales.get_element_type()
    codes = op.convert(weight.codes, dtype)
    if weight.zero_points is not None:
        codes = op.subtract(codes, op.convert(weight.zero_points, dtype))
    values = op.multiply(codes, weight.scales)
    if weight.group != weight.cols:
        values = op.reshape(values, const(list(weight.shape)), False)
    return _as_f32(values)


def linear(x: Value, weight: Matrix, bias: npt.NDArray[np.float32] | None = None) -> Value:
    """``x @ weight.T + bias``: [batch, tokens, cols] -> [batch, tokens, rows].

    With matrices of experts x is [experts, tokens, cols], each for its own.
    """
    if isinstance(weight, QuantizedMatrix):
        return _with_bias(_quantized_linear(x, weight), bias)
    return _with_bias(op.matmul(x, matrix(weight), False, True), bias)


def tied_linear(x: Value, table: Value) -> Value:
    """``x @ table.T``, the table being a value that `embedding` uses too."""
    return op.matmul(x, table, False, True)


def split(x: Value, sizes: Sequence[int]) -> list[Value]:
    """Cut the last axis of [batch, tokens, features] into parts."""
    parts = op.variadic_split(x, const(2), const(list(sizes)))
    return [parts.output(i) for i in range(len(sizes))]


def linears(
    x: Value,
    weights: Sequence[Matrix],
    sizes: Sequence[int],
    bias: npt.NDArray[np.float32] | None = None,
) -> list[Value]:
    """Several matrices applied to one input: those of `WeightReader.stack`.

    Args:
        weights: one matrix of all rows, or one for each size.
        sizes: the rows of each result.
        bias: [sum of sizes], or None.
    """
    if len(weights) == 1:
        return split(linear(x, weights[0], bias), sizes)
    biases = [None] * len(sizes) if bias is None else np.split(bias, np.cumsum(sizes)[:-1])
    return [linear(x, weight, b) for weight, b in zip(weights, biases, strict=True)]


def _quantized_linear(x: Value, weight: QuantizedMatrix) -> Value:
    if weight.column_order is not None:
        x = op.gather(x, const(weight.column_order), const(2))
    y = op.matmul(x, matrix(weight), False, True)
    if weight.offsets is None:
        return y
    return op.add(y, op.matmul(_group_sums(x, weight), _as_f32(weight.offsets), False, True))


def _group_sums(x: Value, weight: QuantizedMatrix) -> Value:
    # A group's offset multiplies every x of the group alike, so it needs only their sum.
    groups = weight.cols // weight.group
    grouped = op.reshape(x, const([0, 0, groups, weight.group]), True)
    return op.reduce_sum(grouped, const([3]), False)


def _with_bias(y: Value, bias: npt.NDArray[np.float32] | None) -> Value:
    return y if bias is None else op.add(y, const(bias.reshape(1, 1, -1), np.float32))


def _as_f32(values: Value) -> Value:
    return op.convert(values, "f32")
