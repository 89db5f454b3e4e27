"""Mixtures of experts: a router that picks some of many feed-forward networks for each token.

In the graph every expert computes every token, and the router's weights, most of them zero, add the
results up. The CPU plugin knows this form, written so, and computes only what was picked: there the
matmuls of a layer become GatherMatmul, two or three whatever the number of experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from openvino import opset15 as op
from openvino.utils.node_factory import NodeFactory

from ovgen.export.graph_weights import Value, const

_OPSET4 = NodeFactory("opset4")


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """Which experts compute which token.

    Attributes:
        experts: [all tokens, picked] int64, their numbers.
        weights: [all tokens, picked], what their results count.
    """

    experts: Value
    weights: Value


def flat_tokens(x: Value) -> Value:
    """[batch, tokens, hidden] -> [all tokens, hidden]."""
    hidden = x.get_output_partial_shape(0)[2].get_length()
    return op.reshape(x, const([-1, hidden]), False)


def pick(scores: Value, num_picked: int) -> Routing:
    """The experts of the highest scores [all tokens, experts], which are their weights too."""
    picked = op.topk(scores, const(num_picked), 1, "max", "value", "i64")
    return Routing(picked.output(1), picked.output(0))


def normalized(weights: Value) -> Value:
    """Weights [all tokens, picked] that add up to one."""
    return op.divide(weights, op.reduce_sum(weights, const([1]), True))


def mixture(
    x: Value, num_experts: int, routing: Routing, network: Callable[[Value], Value]
) -> Value:
    """What the picked experts make of each token, added up by their weights.

    Args:
        x: [batch, tokens, hidden], as the result.
        num_experts: to pick from.
        routing: of the tokens.
        network: of all experts, [experts, all tokens, hidden] to the same shape.
    """
    shape, flat = op.shape_of(x), flat_tokens(x)
    hidden = flat.get_output_partial_shape(0)[1].get_length()
    copies = op.tile(flat, const([num_experts, 1]))
    outputs = network(op.reshape(copies, const([num_experts, -1, hidden]), False))
    # The plugin looks for these reshapes; between equal shapes they would be optimized away first.
    outputs = op.reshape(outputs, op.concat([const([num_experts]), shape], 0), False)
    tokens = op.concat([const([num_experts]), op.gather(shape, const([0, 1]), const(0))], 0)
    weights = op.transpose(_scattered(routing, flat, num_experts), const([1, 0]))
    weights = op.unsqueeze(op.reshape(weights, tokens, False), const(-1))
    return op.reduce_sum(op.multiply(outputs, weights), const([0]), False)


def _scattered(routing: Routing, flat: Value, num_experts: int) -> Value:
    """The weights of all experts [all tokens, experts], zero for those that were not picked."""
    count = op.gather(op.shape_of(flat), const([0]), const(0))
    zeros = op.broadcast(const(0, np.float32), op.concat([count, const([num_experts])], 0))
    return op.scatter_elements_update(zeros, routing.experts, routing.weights, const(1))


def swish(x: Value, beta: float | None = None) -> Value:
    """``x * sigmoid(beta * x)``.

    A beta of one is left out: the plugin knows a gated expert by a swish without it.
    """
    inputs = [x.output(0)] if beta is None else [x.output(0), const(beta, np.float32).output(0)]
    return _OPSET4.create("Swish", inputs, {})
