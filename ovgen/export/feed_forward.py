"""Feed-forward networks with their weights.

They take their tensors by transformers' names, under the name of the module that is given.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from openvino import opset15 as op

from ovgen.export.blocks import dense
from ovgen.export.graph import activation
from ovgen.export.graph_weights import Value, linear
from ovgen.export.weight_reader import WeightReader


@dataclass(frozen=True, slots=True, eq=False)
class GatedMLP:
    """The gated feed-forward network ``down(act(gate(x)) * up(x))`` (Shazeer, 2020).

    Attributes:
        hidden: features of a token.
        inner: features in between.
        activation: its name, see `ovgen.export.graph.activation`.
        bias: whether the projections have one.
        fused: name of one projection for gate and up without a bias, where the file has that.
    """

    weights: WeightReader
    hidden: int
    inner: int
    activation: str
    _: KW_ONLY
    bias: bool = False
    fused: str | None = None

    def __call__(self, x: Value, name: str) -> Value:
        """[batch, tokens, hidden] -> [batch, tokens, hidden], with the weights under ``name``."""
        gate, up = self._project(x, name)
        h = op.multiply(activation(gate, self.activation), up)
        return dense(h, f"{name}.down_proj", self.hidden, self.inner, self.weights, bias=self.bias)

    def _project(self, x: Value, name: str) -> list[Value]:
        # Two matmuls, for the plugin computes the activation within that of the gate: one for both
        # saves less in a step of one token than copying its halves costs in larger ones.
        names = [f"{name}.gate_proj", f"{name}.up_proj"]
        if self.fused is None:
            sizes = self.inner, self.hidden
            return [dense(x, each, *sizes, self.weights, bias=self.bias) for each in names]
        halves = [(f"{each}.weight", self.inner) for each in names]
        weights = self.weights.parts(f"{name}.{self.fused}.weight", halves, self.hidden)
        return [linear(x, weight) for weight in weights]


@dataclass(frozen=True, slots=True, eq=False)
class PlainMLP:
    """The feed-forward network ``second(act(first(x)))``.

    Attributes:
        hidden: features of a token.
        inner: features in between.
        activation: its name, see `ovgen.export.graph.activation`.
        names: of the two projections.
        bias: whether they have one.
        transposed: the file has the weights as [inputs, outputs].
    """

    weights: WeightReader
    hidden: int
    inner: int
    activation: str
    names: tuple[str, str]
    _: KW_ONLY
    bias: bool = True
    transposed: bool = False

    def __call__(self, x: Value, name: str) -> Value:
        """[batch, tokens, hidden] -> [batch, tokens, hidden], with the weights under ``name``."""
        first, second = (f"{name}.{each}" for each in self.names)
        h = activation(self._dense(x, first, self.inner, self.hidden), self.activation)
        return self._dense(h, second, self.hidden, self.inner)

    def _dense(self, x: Value, name: str, rows: int, cols: int) -> Value:
        return dense(x, name, rows, cols, self.weights, bias=self.bias, transposed=self.transposed)
