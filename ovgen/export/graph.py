"""Decoder blocks over OpenVINO's opset, so that an architecture reads like its formulas.

Each block is written in the form that the CPU plugin fuses (RMS, RoPE, attention with its KV
cache, compressed fully-connected) and that the PagedAttention transformation accepts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset15 as op
from openvino.op.util import Variable, VariableInfo
from openvino.utils.node_factory import NodeFactory

from ovgen.export.checkpoint import Floats
from ovgen.export.graph_weights import Value, const
from ovgen.export.rope import Rope

LOWEST = np.finfo(np.float32).min
_OPSET13 = NodeFactory("opset13")


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

    def causal_mask(self, window: int | None = None) -> Value:
        """The additive mask [batch, 1, tokens, past + tokens]: 0 to see, the lowest float not.

        Args:
            window: the last tokens that one sees, itself included; None for all.
        """
        if window is not None:
            keys, queries = self.key_positions(), self._query_positions()
            return _sliding_mask(keys, queries, self._present(), window)
        return op.select(self.visible(), const(0, np.float32), const(LOWEST, np.float32))

    def visible(self) -> Value:
        """Which keys a token sees, boolean [batch, 1, tokens, past + tokens]."""
        keys, queries = self.key_positions(), self._query_positions()
        causal = op.less_equal(op.unsqueeze(keys, const([0])), op.unsqueeze(queries, const([1])))
        return op.logical_and(op.unsqueeze(causal, const([0, 1])), self._present())

    def key_positions(self) -> Value:
        """Columns of the cache, int64 [past + tokens]."""
        return op.range(const(0), self._num_keys(), const(1), "i64")

    def _query_positions(self) -> Value:
        total = self._num_keys()
        tokens = op.gather(op.shape_of(self.input_ids), const(1), const(0))
        return op.range(op.subtract(total, tokens), total, const(1), "i64")

    def _num_keys(self) -> Value:
        return op.gather(op.shape_of(self.attention_mask), const(1), const(0))

    def _present(self) -> Value:
        return op.unsqueeze(op.convert(self.attention_mask, "boolean"), const([1, 2]))

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

    def rotary(self, rope: Rope) -> Rotary:
        """cos and sin of the tokens' positions (Su et al., 2021)."""
        frequencies = _row(rope.inverse_frequencies)
        if rope.long_inverse_frequencies is not None:
            # One choice for all tokens of a row, by its furthest position: so transformers does.
            # Where attention is paged each token is a row, which keeps a batch's requests apart.
            last = op.unsqueeze(op.reduce_max(self.position_ids, const([1]), True), const([2]))
            is_long = op.greater_equal(last, const(rope.original_length))
            frequencies = op.select(is_long, _row(rope.long_inverse_frequencies), frequencies)
        positions = op.convert(op.unsqueeze(self.position_ids, const([2])), "f32")
        angles = op.matmul(positions, frequencies, False, False)
        both_halves = op.concat([angles, angles], -1)
        cos, sin = op.cos(both_halves), op.sin(both_halves)
        if rope.attention_factor != 1.0:
            factor = const(rope.attention_factor, np.float32)
            cos, sin = op.multiply(cos, factor), op.multiply(sin, factor)
        return Rotary(op.unsqueeze(cos, const([1])), op.unsqueeze(sin, const([1])), rope.dim)

    def model(self, logits: Value, name: str, placeholders: Sequence[Value] = ()) -> ov.Model:
        """The finished graph; ``placeholders`` stand for weights and are no inputs."""
        logits.output(0).set_names({"logits"})
        inputs = [self.input_ids, self.attention_mask, self.position_ids, self.beam_idx]
        return ov.Model([op.result(logits)], self._assigns, [*inputs, *placeholders], name)


def _sliding_mask(keys: Value, queries: Value, present: Value, window: int) -> Value:
    """The mask of an attention that sees the last ``window`` tokens.

    The PagedAttention transformation knows a window by this chain of operations, which is how
    gpt-oss comes out of torch, and by no shorter one: it reads the constant that is added to the
    queries, and overlooks the rest.
    """
    columns = op.unsqueeze(keys, const([0, 1, 2]))
    rows = op.unsqueeze(queries, const([0, 1, 3]))
    always = const(True, np.bool_)
    near = op.greater(columns, op.add(rows, const(-window)))
    seen = op.bitwise_and(op.bitwise_and(always, near), op.less_equal(columns, rows))
    seen = op.bitwise_and(op.bitwise_and(always, seen), present)
    mask = op.select(
        op.broadcast(seen, op.shape_of(seen)),
        const(0, np.float32),
        const(LOWEST, np.float32),
    )
    total = op.gather(op.shape_of(keys), const([0]), const(0))
    return op.slice(mask, const([0]), total, const([1]), const([3]))


def _input(name: str, shape: list[int], dtype: ov.Type) -> Value:
    parameter = op.parameter(shape, dtype, name=name)
    parameter.output(0).set_names({name})
    return parameter


def _row(values: Floats) -> Value:
    return const(values.reshape(1, 1, -1), np.float32)


def num_features(x: Value) -> int:
    """The size of the last axis."""
    shape = x.get_partial_shape() if isinstance(x, ov.Output) else x.get_output_partial_shape(0)
    return int(shape[-1].get_length())


def scale(x: Value, factor: float) -> Value:
    """``factor * x``."""
    return x if factor == 1.0 else op.multiply(x, const(factor, np.float32))


def soft_cap(x: Value, cap: float | None) -> Value:
    """``cap * tanh(x / cap)``, which keeps x within the cap; None leaves it as it is."""
    if cap is None:
        return x
    return op.multiply(op.tanh(op.multiply(x, const(1 / cap, np.float32))), const(cap, np.float32))


def rms_norm(x: Value, weight: Floats, eps: float) -> Value:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis (Zhang and Sennrich, 2019)."""
    mean_square = op.reduce_mean(op.multiply(x, x), const([-1]), True)
    root = op.sqrt(op.add(mean_square, const(eps, np.float32)))
    normed = op.multiply(x, op.divide(const(1, np.float32), root))
    return op.multiply(normed, _row(weight))


def layer_norm(x: Value, weight: Value, bias: Floats | None, eps: float) -> Value:
    """``(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`` over the last axis (Ba et al., 2016).

    ``weight`` and ``bias`` are arrays that broadcast to x.
    """
    normed = op.mvn(x, const([-1]), True, eps, "inside_sqrt")
    scaled = op.multiply(normed, _broadcast(weight))
    return scaled if bias is None else op.add(scaled, _broadcast(bias))


def _broadcast(values: Floats) -> Value:
    return _row(values) if values.ndim == 1 else const(values, np.float32)


def activation(x: Value, name: str) -> Value:
    """An activation by transformers' name; see `checkpoint_config.ACTIVATIONS`."""
    if name in ("silu", "swish"):
        return op.swish(x)
    if name in ("relu", "relu2"):
        y = op.relu(x)
        return y if name == "relu" else op.multiply(y, y)
    return op.gelu(x, "erf" if name == "gelu" else "tanh")


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """cos and sin [batch, 1, tokens, dim] that rotate the first ``dim`` features of a head."""

    cos: Value
    sin: Value
    dim: int


def rotate(x: Value, rotary: Rotary) -> Value:
    """Rotate the halves of each head [batch, heads, tokens, head_dim] by its position."""
    head_dim = x.get_output_partial_shape(0)[3].get_length()
    if rotary.dim < head_dim:
        parts = op.variadic_split(x, const(3), const([rotary.dim, head_dim - rotary.dim]))
        return op.concat([_rotate_halves(parts.output(0), rotary), parts.output(1)], -1)
    return _rotate_halves(x, rotary)


def _rotate_halves(x: Value, rotary: Rotary) -> Value:
    half = rotary.dim // 2
    # A positive axis here and -1 in the concat: the plugin's RoPE pattern knows no other pair.
    halves = op.variadic_split(x, const(3), const([half, half]))
    turned = op.concat([op.multiply(halves.output(1), const(-1, np.float32)), halves.output(0)], -1)
    return op.add(op.multiply(x, rotary.cos), op.multiply(turned, rotary.sin))


def split_heads(x: Value, heads: int, head_dim: int) -> Value:
    """[batch, tokens, heads * head_dim] -> [batch, heads, tokens, head_dim]."""
    return op.transpose(op.reshape(x, const([0, 0, heads, head_dim]), True), const([0, 2, 1, 3]))


def merge_heads(x: Value) -> Value:
    """[batch, heads, tokens, head_dim] -> [batch, tokens, heads * head_dim]."""
    shape = x.get_output_partial_shape(0)
    width = shape[1].get_length() * shape[3].get_length()
    return op.reshape(op.transpose(x, const([0, 2, 1, 3])), const([0, 0, width]), True)


def attention(
    query: Value,
    key: Value,
    value: Value,
    mask: Value,
    *,
    scale: float | None = None,
    cap: float | None = None,
    sinks: Floats | None = None,
) -> Value:
    """Scaled dot-product attention, keys and values shared by groups of heads.

    Args:
        query: [batch, heads, tokens, head_dim].
        key: [batch, kv_heads, all, head_dim], as ``value``.
        mask: from `DecoderGraph.causal_mask`.
        scale: of the products; None for ``1 / sqrt(head_dim)``.
        cap: soft cap of the scaled products, which no fused attention knows.
        sinks: [heads], a product of each head with nothing, which only takes weight from others.
    """
    shape = query.get_output_partial_shape(0)
    heads, head_dim = shape[1].get_length(), shape[3].get_length()
    key, value = _repeat_heads(key, heads), _repeat_heads(value, heads)
    if cap is not None:
        factor = 1 / math.sqrt(head_dim) if scale is None else scale
        products = op.matmul(op.multiply(query, const(factor, np.float32)), key, False, True)
        weights = op.softmax(op.add(soft_cap(products, cap), mask), -1)
        return op.matmul(weights, value, False, False)
    if sinks is not None:
        factor = const(1 / math.sqrt(head_dim) if scale is None else scale, np.float32)
        nothing = const(sinks.reshape(1, heads, 1, 1), np.float32)
        return _attention_with_sinks(query, key, value, mask, factor, nothing)
    if scale is None:
        return op.scaled_dot_product_attention(query, key, value, mask, causal=False)
    factor = const(scale, np.float32)
    return op.scaled_dot_product_attention(query, key, value, mask, factor, causal=False)


def _attention_with_sinks(*inputs: Value) -> Value:
    # The opset's own function has no argument for the sinks.
    outputs = [value if isinstance(value, ov.Output) else value.output(0) for value in inputs]
    return _OPSET13.create("ScaledDotProductAttention", outputs, {"causal": False})


def _repeat_heads(x: Value, heads: int) -> Value:
    shape = x.get_output_partial_shape(0)
    repeats, head_dim = heads // shape[1].get_length(), shape[3].get_length()
    if repeats == 1:  # the plugin fuses no attention with copies of one
        return x
    copies = op.broadcast(
        op.unsqueeze(x, const([2])),
        const([1, 1, repeats, 1, 1]),
        broadcast_spec="BIDIRECTIONAL",
    )
    return op.reshape(copies, const([0, heads, -1, head_dim]), True)
