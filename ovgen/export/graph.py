"""Decoder blocks over OpenVINO's opset, so that an architecture reads like its formulas.

Each block is written in the form that the CPU plugin fuses (RMS, RoPE, attention with its KV
cache, compressed fully-connected) and that the PagedAttention transformation accepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as op
from openvino.op.util import Variable, VariableInfo

from ovgen.export.weights import DenseMatrix, Matrix, QuantizedMatrix

Value: TypeAlias = Any  # an ov.Node or ov.Output; every block maps values to values


def const(value: Any, dtype: type[Any] = np.int64) -> Value:
    """A constant; a list of integers unless said otherwise."""
    return op.constant(np.asarray(value, dtype))


class DecoderGraph:
    """The inputs, the KV cache and the outputs of one stateful decoder.

    Inputs: ``input_ids`` [batch, tokens], ``attention_mask`` [batch, past + tokens],
    ``position_ids`` [batch, tokens] (all int64) and ``beam_idx`` [batch] int32, which reorders
    the rows of the cache. Output: ``logits`` [batch, tokens, vocab] float32.
    """

    def __init__(self) -> None:
        self.input_ids = _input("input_ids", [-1, -1], ov.Type.i64)
        self.attention_mask = _input("attention_mask", [-1, -1], ov.Type.i64)
        self.position_ids = _input("position_ids", [-1, -1], ov.Type.i64)
        self.beam_idx = _input("beam_idx", [-1], ov.Type.i32)
        self._assigns: list[Value] = []
        self._batch_size = op.gather(op.shape_of(self.input_ids), const([0]), const(0))

    def causal_mask(self) -> Value:
        """The additive mask [batch, 1, tokens, past + tokens]: 0 to see, the lowest float not."""
        total = op.gather(op.shape_of(self.attention_mask), const(1), const(0))
        tokens = op.gather(op.shape_of(self.input_ids), const(1), const(0))
        keys = op.range(const(0), total, const(1), "i64")
        queries = op.range(op.subtract(total, tokens), total, const(1), "i64")
        causal = op.less_equal(op.unsqueeze(keys, const([0])), op.unsqueeze(queries, const([1])))
        present = op.unsqueeze(op.convert(self.attention_mask, "boolean"), const([1, 2]))
        seen = op.logical_and(op.unsqueeze(causal, const([0, 1])), present)
        lowest = np.finfo(np.float32).min
        return op.select(seen, const(0, np.float32), const(lowest, np.float32))

    def kv_cache(self, layer: int, key: Value, value: Value) -> tuple[Value, Value]:
        """Append to a layer's cache and give all of it, each [batch, kv_heads, all, head_dim]."""
        return self._cached(layer, "key", key), self._cached(layer, "value", value)

    def _cached(self, layer: int, kind: str, new: Value) -> Value:
        shape = new.get_output_partial_shape(0)
        heads, head_dim = shape[1].get_length(), shape[3].get_length()
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, heads, -1, head_dim])
        info.data_type = ov.Type.f32
        info.variable_id = f"past_key_values.{layer}.{kind}present.{layer}.{kind}"
        variable = Variable(info)
        empty_shape = op.concat([self._batch_size, const([heads, 0, head_dim])], 0)
        empty = op.broadcast(const(0, np.float32), empty_shape)
        past = op.gather(op.read_value(empty, variable), self.beam_idx, const(0))
        present = op.concat([past, new], 2)
        self._assigns.append(op.assign(present, variable))
        return present

    def model(self, logits: Value, name: str) -> ov.Model:
        """The finished graph."""
        logits.output(0).set_names({"logits"})
        inputs = [self.input_ids, self.attention_mask, self.position_ids, self.beam_idx]
        return ov.Model([op.result(logits)], self._assigns, inputs, name)


def _input(name: str, shape: list[int], dtype: ov.Type) -> Value:
    parameter = op.parameter(shape, dtype, name=name)
    parameter.output(0).set_names({name})
    return parameter


def embedding(table: Value, token_ids: Value) -> Value:
    """Rows of a table: [batch, tokens] -> [batch, tokens, hidden]."""
    return op.gather(table, token_ids, const(0))


def matrix(weight: Matrix) -> Value:
    """A weight as float32 [rows, cols], without its offsets; decompressed where it is used."""
    if isinstance(weight, DenseMatrix):
        return op.convert(_shared(weight.values), "f32")
    rows, cols, group = weight.codes.shape[0], weight.cols, weight.group
    shape = [rows, cols] if group == cols else [rows, cols // group, group]
    codes = _codes(weight, shape)
    dtype = "f16" if weight.scales.dtype == np.float16 else "f32"
    scales = _shared(weight.scales.reshape([*shape[:-1], 1]))
    values = op.multiply(op.convert(codes, dtype), scales)
    if group != cols:
        values = op.reshape(values, const([rows, cols]), False)
    return op.convert(values, "f32")


def linear(x: Value, weight: Matrix, bias: npt.NDArray[np.float32] | None = None) -> Value:
    """``x @ weight.T + bias``: [batch, tokens, cols] -> [batch, tokens, rows]."""
    y = op.matmul(x, matrix(weight), False, True)
    if isinstance(weight, QuantizedMatrix) and weight.offsets is not None:
        y = op.add(y, op.matmul(_group_sums(x, weight), _offsets(weight), False, True))
    return y if bias is None else op.add(y, const(bias.reshape(1, 1, -1), np.float32))


def tied_linear(x: Value, table: Value) -> Value:
    """``x @ table.T``, the table being a value that `embedding` uses too."""
    return op.matmul(x, table, False, True)


def _group_sums(x: Value, weight: QuantizedMatrix) -> Value:
    # A group's offset multiplies every x of the group alike, so it needs only their sum.
    groups = weight.cols // weight.group
    grouped = op.reshape(x, const([0, 0, groups, weight.group]), True)
    return op.reduce_sum(grouped, const([3]), False)


def _offsets(weight: QuantizedMatrix) -> Value:
    return op.convert(_shared(weight.offsets), "f32")


def _codes(weight: QuantizedMatrix, shape: list[int]) -> Value:
    if weight.bits == 8:
        return _shared(weight.codes.reshape(shape))
    # A 4-bit constant over a numpy array outlives it and crashes: this one is copied.
    return ov.op.Constant(ov.Tensor(weight.codes, ov.Shape(shape), ov.Type.i4), shared_memory=False)


def _shared(values: npt.NDArray[Any] | None) -> Value:
    return op.constant(np.ascontiguousarray(values), shared_memory=True)


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


def rms_norm(x: Value, weight: npt.NDArray[np.float32], eps: float) -> Value:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis (Zhang and Sennrich, 2019)."""
    mean_square = op.reduce_mean(op.multiply(x, x), const([-1]), True)
    root = op.sqrt(op.add(mean_square, const(eps, np.float32)))
    normed = op.multiply(x, op.divide(const(1, np.float32), root))
    return op.multiply(normed, const(weight.reshape(1, 1, -1), np.float32))


def rotary_embedding(position_ids: Value, inv_freq: npt.NDArray[np.float32]) -> tuple[Value, Value]:
    """cos and sin [batch, 1, tokens, head_dim] of the positions (Su et al., 2021)."""
    positions = op.convert(op.unsqueeze(position_ids, const([2])), "f32")
    angles = op.matmul(positions, const(inv_freq.reshape(1, 1, -1), np.float32), False, False)
    both_halves = op.concat([angles, angles], -1)
    cos = op.unsqueeze(op.cos(both_halves), const([1]))
    return cos, op.unsqueeze(op.sin(both_halves), const([1]))


def rotate(x: Value, cos: Value, sin: Value) -> Value:
    """Rotate the two halves of each head [batch, heads, tokens, head_dim] by its position."""
    half = x.get_output_partial_shape(0)[3].get_length() // 2
    # A positive axis here and -1 in the concat: the plugin's RoPE pattern knows no other pair.
    halves = op.variadic_split(x, const(3), const([half, half]))
    turned = op.concat([op.multiply(halves.output(1), const(-1, np.float32)), halves.output(0)], -1)
    return op.add(op.multiply(x, cos), op.multiply(turned, sin))


def split_heads(x: Value, heads: int, head_dim: int) -> Value:
    """[batch, tokens, heads * head_dim] -> [batch, heads, tokens, head_dim]."""
    return op.transpose(op.reshape(x, const([0, 0, heads, head_dim]), True), const([0, 2, 1, 3]))


def merge_heads(x: Value) -> Value:
    """[batch, heads, tokens, head_dim] -> [batch, tokens, heads * head_dim]."""
    shape = x.get_output_partial_shape(0)
    width = shape[1].get_length() * shape[3].get_length()
    return op.reshape(op.transpose(x, const([0, 2, 1, 3])), const([0, 0, width]), True)


def attention(query: Value, key: Value, value: Value, mask: Value) -> Value:
    """Scaled dot-product attention, keys and values shared by groups of heads.

    ``query`` [batch, heads, tokens, head_dim], ``key`` and ``value`` [batch, kv_heads, all,
    head_dim], ``mask`` from `DecoderGraph.causal_mask`.
    """
    heads = query.get_output_partial_shape(0)[1].get_length()
    return op.scaled_dot_product_attention(
        query, _repeat_heads(key, heads), _repeat_heads(value, heads), mask, causal=False
    )


def _repeat_heads(x: Value, heads: int) -> Value:
    shape = x.get_output_partial_shape(0)
    repeats, head_dim = heads // shape[1].get_length(), shape[3].get_length()
    copies = op.broadcast(
        op.unsqueeze(x, const([2])),
        const([1, 1, repeats, 1, 1]),
        broadcast_spec="BIDIRECTIONAL",
    )
    return op.reshape(copies, const([0, heads, -1, head_dim]), True)


def swiglu(gate: Value, up: Value) -> Value:
    """``silu(gate) * up`` (Shazeer, 2020)."""
    return op.multiply(op.swish(gate), up)
