"""A graph pass: after the last attention, compute only the tokens whose logits are wanted."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import openvino as ov
from openvino import opset15 as op

SAMPLED_TOKENS = "sampled_tokens_indices"

Value: TypeAlias = Any  # an ov.Output

# What may stand between the head's matmul and the logits: a bias, a scale, soft-capping, a cast.
_AFTER_HEAD = frozenset({"Add", "Subtract", "Multiply", "Divide", "Tanh", "Convert"})

# Operations that make of each token something of its own: these on all their inputs alike,
_ELEMENTWISE = frozenset(
    {
        *("Add", "Subtract", "Multiply", "Divide", "Power", "SquaredDifference"),
        *("Maximum", "Minimum", "Convert", "Sqrt", "Negative", "Abs", "Exp", "Erf"),
        *("Tanh", "Sigmoid", "Swish", "Gelu", "Relu", "HSwish", "SoftPlus"),
    }
)
# and these along the last axis, given as a constant.
_ALONG_LAST_AXIS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "MVN", "VariadicSplit"})


def gather_sampled_tokens(model: ov.Model, axis: int = 1) -> bool:
    """Compute logits only where they are wanted: a long prompt needs those of its last token.

    Adds the input ``sampled_tokens_indices`` [num] int64, positions in the step's tokens, and
    gathers by it: logits become [batch, num, vocab], or with paged attention [num, 1, vocab]. The
    tokens are gathered as early as can be, which is where the last attention ends, so that the
    last block's feed-forward network is spared the others as well.

    Args:
        model: changed in place.
        axis: of the tokens; 0 with paged attention.

    Returns:
        False where the head was not found; the graph is then as it was.
    """
    head = find_head(model.output(0).get_node().input_value(0).get_node())
    if head is None:
        return False
    region = _tokenwise_before(model, head, axis)
    indices = op.parameter([-1], ov.Type.i64, name=SAMPLED_TOKENS)
    indices.output(0).set_names({SAMPLED_TOKENS})
    gathered: dict[tuple[str, int], Value] = {}
    ports = [port for node in region.values() for port in node.inputs()]
    ports = [port for port in ports if _has_tokens(port.get_source_output(), axis)]
    for port in [*ports, head.input(0)]:
        value = port.get_source_output()
        if value.get_node().get_name() in region:
            continue
        key = value.get_node().get_name(), value.get_index()
        if key not in gathered:
            gathered[key] = op.gather(value, indices, op.constant(np.int64(axis))).output(0)
        port.replace_source_output(gathered[key])
    model.add_parameters([indices])
    model.validate_nodes_and_infer_types()
    return True


def find_head(node: ov.Node) -> ov.Node | None:
    """The matmul that makes the logits [batch, tokens, vocab], up from its last elementwise op."""
    while node.get_type_name() in _AFTER_HEAD:
        parents = [value.get_node() for value in node.input_values()]
        data = [parent for parent in parents if parent.get_type_name() != "Constant"]
        # A constant may come through a cast from half precision.
        data = [parent for parent in data if not _is_cast_constant(parent)]
        if len(data) != 1:
            return None
        node = data[0]
    is_head = (
        node.get_type_name() == "MatMul"
        and node.input_value(0).get_partial_shape().rank == ov.Dimension(3)
        and not node.get_attributes()["transpose_a"]
    )
    return node if is_head else None


def _is_cast_constant(node: ov.Node) -> bool:
    return (
        node.get_type_name() == "Convert"
        and node.input_value(0).get_node().get_type_name() == "Constant"
    )


def _tokenwise_before(model: ov.Model, head: ov.Node, axis: int) -> dict[str, ov.Node]:
    """By name: nodes that work on each token alone, and on which nothing but the head depends."""
    region: dict[str, ov.Node] = {}
    for node in reversed(model.get_ordered_ops()):
        users = [port for output in node.outputs() for port in output.get_target_inputs()]
        leads_to_head = users and all(
            port.get_node().get_name() in region
            or (port.get_node().get_name() == head.get_name() and port.get_index() == 0)
            for port in users
        )
        if leads_to_head and _is_tokenwise(node, axis):
            region[node.get_name()] = node
    return region


def _is_tokenwise(node: ov.Node, axis: int) -> bool:
    name, inputs = node.get_type_name(), node.input_values()
    if not all(_has_tokens(output, axis) for output in node.outputs()):
        return False
    if name in _ELEMENTWISE:
        return all(_has_tokens(v, axis) or not _depends_on_inputs(v) for v in inputs)
    if not inputs or not _has_tokens(inputs[0], axis):
        return False
    if name == "MatMul":
        return not node.get_attributes()["transpose_a"]
    if name in _ALONG_LAST_AXIS:
        axes = inputs[1].get_node()
        is_known = axes.get_type_name() == "Constant"
        return is_known and set(np.atleast_1d(axes.data).tolist()) <= {-1, 2}
    return False


def _has_tokens(value: Value, axis: int) -> bool:
    """Whether it is [batch, tokens, features], or with paged attention [tokens, 1, features]."""
    shape = value.get_partial_shape()
    return bool(
        shape.rank == ov.Dimension(3) and shape[axis].is_dynamic and not shape[2].is_dynamic
    )


def _depends_on_inputs(value: Value) -> bool:
    """Whether more than constants are behind a value; a deep tree counts as such."""
    waiting, num_seen = [value.get_node()], 0
    while waiting:
        node = waiting.pop()
        num_seen += 1
        if node.get_type_name() in ("Parameter", "ReadValue") or num_seen > 16:
            return True
        waiting += [v.get_node() for v in node.input_values()]
    return False
