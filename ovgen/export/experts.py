"""The mixtures of experts that decoders have, with their weights."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import numpy as np
from openvino import opset15 as op

from ovgen.export.graph_moe import Routing, flat_tokens, mixture, normalized, pick, swish
from ovgen.export.graph_weights import Value, const, linear
from ovgen.export.matrices import Matrix
from ovgen.export.weight_reader import WeightReader


def _scores(x: Value, name: str, num_experts: int, weights: WeightReader) -> Value:
    """Of each expert for each token, [all tokens, experts]; the weights are kept in float32."""
    flat = flat_tokens(x)
    hidden = flat.get_output_partial_shape(0)[1].get_length()
    router = weights.array(f"{name}.weight", (num_experts, hidden))
    return op.matmul(flat, const(router, np.float32), False, True)


@dataclass(frozen=True, slots=True, eq=False)
class GatedExperts:
    """Experts ``down(silu(gate(x)) * up(x))``, picked by a softmax of scores.

    Attributes:
        hidden: features of a token.
        inner: features in between.
        num_experts: of a layer.
        num_picked: of a token.
        names: of an expert's gate, up and down.
        is_normalized: whether the weights of the picked ones add up to one.
    """

    weights: WeightReader
    hidden: int
    inner: int
    num_experts: int
    num_picked: int
    _: KW_ONLY
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    is_normalized: bool = True

    def __call__(self, x: Value, name: str) -> Value:
        """[batch, tokens, hidden] -> [batch, tokens, hidden], with the weights under ``name``."""
        scores = _scores(x, f"{name}.gate", self.num_experts, self.weights)
        routing = pick(op.softmax(scores, 1), self.num_picked)
        if self.is_normalized:
            routing = Routing(routing.experts, normalized(routing.weights))
        gate, up, down = (self._matrices(name, part) for part in range(3))

        def network(tokens: Value) -> Value:
            h = op.multiply(swish(linear(tokens, gate)), linear(tokens, up))
            return linear(h, down)

        return mixture(x, self.num_experts, routing, network)

    def _matrices(self, name: str, part: int) -> Matrix:
        rows, cols = (self.hidden, self.inner) if part == 2 else (self.inner, self.hidden)
        experts = range(self.num_experts)
        names = [f"{name}.experts.{expert}.{self.names[part]}.weight" for expert in experts]
        return self.weights.experts(names, (self.num_experts, rows, cols))


@dataclass(frozen=True, slots=True, eq=False)
class ClampedExperts:
    """gpt-oss's experts ``down((up(x) + 1) * swish(gate(x)))``, with limits and biases.

    Gate and up are the even and odd rows of one projection; the weights of the picked are the
    softmax of their scores.

    Attributes:
        hidden: features of a token.
        inner: features in between.
        num_experts: of a layer.
        num_picked: of a token.
        limit: of gate and up.
        beta: of the swish.
    """

    weights: WeightReader
    hidden: int
    inner: int
    num_experts: int
    num_picked: int
    _: KW_ONLY
    limit: float
    beta: float = 1.702

    def __call__(self, x: Value, name: str) -> Value:
        """[batch, tokens, hidden] -> [batch, tokens, hidden], with the weights under ``name``."""
        bias = self.weights.vector(f"{name}.router.bias", self.num_experts)
        scores = _scores(x, f"{name}.router", self.num_experts, self.weights)
        routing = pick(op.add(scores, const(bias, np.float32)), self.num_picked)
        routing = Routing(routing.experts, op.softmax(routing.weights, 1))
        parts = f"{name}.experts"
        joined, joined_bias = self._part(f"{parts}.gate_up_proj", 2 * self.inner, self.hidden)
        down, down_bias = self._part(f"{parts}.down_proj", self.hidden, self.inner)

        def network(tokens: Value) -> Value:
            both = op.add(linear(tokens, joined), joined_bias)
            up = op.clamp(self._every_other(both, 1), -self.limit, self.limit)
            gate = op.minimum(self._every_other(both, 0), const(self.limit, np.float32))
            h = op.multiply(op.add(up, const(1, np.float32)), swish(gate, self.beta))
            return op.add(linear(h, down), down_bias)

        return mixture(x, self.num_experts, routing, network)

    def _every_other(self, both: Value, first: int) -> Value:
        stop = const([2 * self.inner])
        return op.slice(both, const([first]), stop, const([2]), const([2]))

    def _part(self, name: str, rows: int, cols: int) -> tuple[Matrix, Value]:
        shape = (self.num_experts, rows, cols)
        # MXFP4 comes as [experts, rows, cols], and what transformers saves as floats transposed.
        is_packed = f"{name}.weight" in self.weights
        key = f"{name}.weight" if is_packed else name
        matrix = self.weights.experts([key], shape, transposed=not is_packed)
        bias = self.weights.array(f"{name}_bias", (self.num_experts, rows))
        return matrix, const(bias[:, None, :], np.float32)
