"""Self-attention with its weights, in all the forms that the decoders have.

It takes its tensors by transformers' names, under the name of the module that is given.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import numpy as np
import numpy.typing as npt
from openvino import opset15 as op

from ovgen.export.blocks import Norm, dense
from ovgen.export.checkpoint import Floats
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.graph import DecoderGraph, Rotary, attention, merge_heads, rotate, split_heads
from ovgen.export.graph_weights import Value, const, linear, linears, split
from ovgen.export.tensor_views import halves_first
from ovgen.export.weight_reader import WeightReader


@dataclass(frozen=True, slots=True)
class Heads:
    """The sizes of an attention.

    Attributes:
        hidden: features of a token.
        query: query heads.
        key_value: key and value heads.
        dim: features of each.
    """

    hidden: int
    query: int
    key_value: int
    dim: int

    @classmethod
    def of(cls, config: CheckpointConfig) -> Heads:
        """As the config has them under the usual names."""
        return cls(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )


@dataclass(frozen=True, slots=True, eq=False)
class SelfAttention:
    """Causal self-attention with a KV cache, as the layers of a model share it.

    Attributes:
        heads: the sizes.
        bias: whether the projections of queries, keys and values have one.
        output_bias: whether the projection back has one.
        output: name of the projection back.
        fused: name of one projection for queries, keys and values, where the file has that.
        fused_order: of its rows, to have all queries first, then the keys, then the values.
        transposed: the file has the weights as [inputs, outputs].
        clip: the greatest query, key or value.
        interleaved: the features of a head whose neighbours the model rotates with each other; 0
            where it rotates the halves.
        norm: of query and key over all heads [batch, tokens, features]; it is called with the
            name of the module up to its ``q`` or ``k``.
        head_norm: the same by heads [batch, tokens, heads, head_dim].
        scale: of the products; None for ``1 / sqrt(head_dim)``.
        cap: soft cap of the scaled products.
        sinks: name of the heads' sinks, where they have some.
    """

    graph: DecoderGraph
    weights: WeightReader
    heads: Heads
    _: KW_ONLY
    bias: bool = False
    output_bias: bool = False
    output: str = "o_proj"
    fused: str | None = None
    fused_order: npt.NDArray[np.intp] | None = None
    transposed: bool = False
    clip: float | None = None
    interleaved: int = 0
    norm: Norm | None = None
    head_norm: Norm | None = None
    scale: float | None = None
    cap: float | None = None
    sinks: str | None = None

    def __call__(
        self, x: Value, name: str, layer: int, mask: Value, rotary: Rotary | None
    ) -> Value:
        """[batch, tokens, hidden] -> [batch, tokens, hidden], with the weights under ``name``."""
        query, key, value = self._project(x, name)
        if self.norm is not None:
            query, key = self.norm(query, f"{name}.q"), self.norm(key, f"{name}.k")
        heads = self.heads
        query = self._split(query, heads.query, f"{name}.q")
        key = self._split(key, heads.key_value, f"{name}.k")
        value = split_heads(value, heads.key_value, heads.dim)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        key, value = self.graph.kv_cache(layer, key, value)
        sinks = self._sinks(f"{name}.{self.sinks}") if self.sinks else None
        attended = attention(query, key, value, mask, scale=self.scale, cap=self.cap, sinks=sinks)
        return dense(
            merge_heads(attended),
            f"{name}.{self.output}",
            heads.hidden,
            heads.query * heads.dim,
            self.weights,
            bias=self.output_bias,
            transposed=self.transposed,
        )

    def _split(self, x: Value, count: int, name: str) -> Value:
        """Queries or keys as [batch, heads, tokens, head_dim]."""
        if self.head_norm is None:
            return split_heads(x, count, self.heads.dim)
        # Before the transposition: what stands behind it keeps the plugin from fusing it.
        by_heads = op.reshape(x, const([0, 0, count, self.heads.dim]), True)
        return op.transpose(self.head_norm(by_heads, name), const([0, 2, 1, 3]))

    def _project(self, x: Value, name: str) -> list[Value]:
        """Queries, keys and values, each [batch, tokens, heads * head_dim]."""
        hidden = self.heads.hidden
        counts = (self.heads.query, self.heads.key_value, self.heads.key_value)
        sizes = [count * self.heads.dim for count in counts]
        if self.fused is not None:
            return split(self._project_fused(x, f"{name}.{self.fused}", sum(sizes)), sizes)
        parts = [(f"{name}.{kind}_proj", size) for kind, size in zip("qkv", sizes, strict=True)]
        orders = [self._order(count) for count in counts[:2]] + [None]
        stacked = self.weights.stack(
            [(f"{part}.weight", size) for part, size in parts], hidden, orders=orders
        )
        if not self.bias:
            return linears(x, stacked, sizes)
        biases = [
            values if order is None else values[order]
            for values, order in zip((self._bias(*part) for part in parts), orders, strict=True)
        ]
        return linears(x, stacked, sizes, np.concatenate(biases))

    def _project_fused(self, x: Value, name: str, size: int) -> Value:
        weight = self.weights.matrix(
            f"{name}.weight",
            (size, self.heads.hidden),
            order=self.fused_order,
            transposed=self.transposed,
        )
        bias = self._bias(name, size) if self.bias else None
        if bias is not None and self.fused_order is not None:
            bias = bias[self.fused_order]
        projected = linear(x, weight, bias)
        return projected if self.clip is None else op.clamp(projected, -self.clip, self.clip)

    def _sinks(self, name: str) -> Floats:
        return self.weights.vector(name, self.heads.query)

    def _bias(self, name: str, size: int) -> Floats:
        return self.weights.vector(f"{name}.bias", size)

    def _order(self, heads: int) -> npt.NDArray[np.intp] | None:
        if not self.interleaved:
            return None
        return halves_first(heads, self.heads.dim, self.interleaved)
