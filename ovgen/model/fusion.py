"""One matmul for the projections to query, key and value.

Exports of optimum-intel keep them apart; the CPU plugin computes each as a node of its own, whose
overhead is much of a small step.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from itertools import accumulate

import numpy as np
import openvino as ov
from openvino import opset15 as op

# A matmul saved is worth some 10 us a step (OpenVINO 2026.4). Reading larger weights takes much
# longer than that, and stacked ones stay in memory, where the model's file is only mapped.
MAX_BYTES = 3 << 18

# What makes floats of a weight's constants, besides the Reshape of groups that share a scale.
_DECOMPRESSION = frozenset({"Convert", "Subtract", "Multiply"})


def fuse_projections(model: ov.Model, max_bytes: int = MAX_BYTES) -> int:
    """Stack the weights of query, key and value, and split what the one matmul gives.

    They are taken together where they multiply one input and their weights are alike but for their
    number of rows: floats, or integers with scales and zero points. Biases are stacked with them,
    for behind the split the plugin could not add them within the matmul. The bodies of loops and
    branches stay as they are.

    Args:
        model: before its attention is paged; changed in place.
        max_bytes: of weights to stack, for each matmul that it saves.

    Returns:
        How many matmuls were saved.
    """
    num_saved = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention":
            continue
        group = _projections(node)
        if group and _pays(group, max_bytes):
            _fuse(group)
            num_saved += len(group) - 1
    if num_saved:
        model.validate_nodes_and_infer_types()
    return num_saved


def _projections(attention: ov.Node) -> list[ov.Node] | None:
    """The matmuls to query, key and value; None where they cannot become one."""
    group: dict[str, ov.Node] = {}
    for value in attention.input_values()[:3]:
        found = _matmuls_before(value)
        if len(found) != 1:
            return None
        group.update(found)
    matmuls = list(group.values())
    keys = {_group_key(matmul) for matmul in matmuls}
    return matmuls if len(matmuls) == 3 and len(keys) == 1 else None


def _matmuls_before(value: ov.Output) -> dict[str, ov.Node]:
    """By name, the nearest matmuls that a value depends on, of those that can be fused at all."""
    found: dict[str, ov.Node] = {}
    waiting, seen = [value.get_node()], set()
    while waiting:
        node = waiting.pop()
        name = node.get_name()
        if name in seen:
            continue
        seen.add(name)
        kind = node.get_type_name()
        if kind == "MatMul" and _group_key(node) is not None:
            found[name] = node
        elif kind not in ("MatMul", "ShapeOf"):
            waiting += [each.get_node() for each in node.input_values()]
    return found


def _group_key(matmul: ov.Node) -> Hashable | None:
    """Equal for matmuls that can become one; None for those that stay alone."""
    x, weight = matmul.input_values()
    attributes = matmul.get_attributes()
    # The experts of a mixture see the tokens that were picked for them, [tokens, hidden], and the
    # plugin knows them by their form.
    has_batch = x.get_partial_shape().rank == ov.Dimension(3)
    if attributes["transpose_a"] or not attributes["transpose_b"] or not has_batch:
        return None
    shape = weight.get_partial_shape()
    if shape.is_dynamic or len(shape) != 2:
        return None
    rows = shape[0].get_length()
    signature = _signature(weight, rows, -2)
    bias = _bias(matmul, rows)
    if signature is None or _is_output(matmul if bias is None else bias.get_node()):
        return None
    return x, signature, None if bias is None else _signature(bias.get_source_output(), rows, -1)


def _signature(value: ov.Output, rows: int, axis: int) -> Hashable | None:
    """What constants, and what is made of them, must have in common to be stacked.

    Args:
        value: a weight or a bias, or a part of its decompression.
        rows: of the weight.
        axis: of the rows, counted from the end; what stands before it is 1.

    Returns:
        None for what is not made of constants alone, or is used elsewhere too: stacked, it would
        take its memory twice.
    """
    node, shape = value.get_node(), value.get_partial_shape()
    kind = node.get_type_name()
    if shape.is_dynamic or len(value.get_target_inputs()) != 1:
        return None
    if kind == "Constant":
        return _constant_signature(node, rows, axis)
    if kind == "Reshape":
        inner = node.input_value(0)
        inner_shape = inner.get_partial_shape()
        if inner_shape.is_dynamic or len(shape) != -axis or inner_shape[0] != shape[0]:
            return None
        parts = [tuple(shape.to_shape())[1:], _signature(inner, rows, -len(inner_shape))]
    elif kind in _DECOMPRESSION:
        parts = [_signature(part, rows, axis) for part in node.input_values()]
    else:
        return None
    return None if None in parts else (kind, node.get_element_type(), *parts)


def _constant_signature(node: ov.Node, rows: int, axis: int) -> Hashable | None:
    shape, dtype = list(node.get_output_shape(0)), node.get_element_type()
    if math.prod(shape) == 1 < rows:  # one scale or zero point for all
        return dtype, node.data.tobytes()
    has_rows = len(shape) >= -axis and shape[axis] == rows and math.prod(shape[:axis]) == 1
    # Their bytes are put one after the other.
    is_even = math.prod(shape) * dtype.bitwidth % 8 == 0
    return (dtype, len(shape), *shape[axis:][1:]) if has_rows and is_even else None


def _bias(matmul: ov.Node, rows: int) -> ov.Input | None:
    """Where constants are added to each row that a matmul gives, if nothing else uses it."""
    targets = list(matmul.output(0).get_target_inputs())
    add = targets[0].get_node()
    if len(targets) > 1 or add.get_type_name() != "Add":
        return None
    bias = add.input(1 - targets[0].get_index())
    adds_axes = add.output(0).get_partial_shape().rank != matmul.output(0).get_partial_shape().rank
    return None if adds_axes or _signature(bias.get_source_output(), rows, -1) is None else bias


def _pays(group: Sequence[ov.Node], max_bytes: int) -> bool:
    num_bytes = sum(_num_bytes(matmul.input_value(1).get_node()) for matmul in group)
    return num_bytes <= max_bytes * (len(group) - 1)


def _num_bytes(node: ov.Node) -> int:
    if node.get_type_name() == "Constant":
        return node.get_byte_size()
    return sum(_num_bytes(value.get_node()) for value in node.input_values())


def _is_output(node: ov.Node) -> bool:
    """Whether a result of the model is what a node gives."""
    targets = node.output(0).get_target_inputs()
    return any(target.get_node().get_type_name() == "Result" for target in targets)


def _fuse(matmuls: Sequence[ov.Node]) -> None:
    """Widen the first of a group, and hand its parts to those that used the others."""
    sizes = [matmul.input_value(1).get_partial_shape()[0].get_length() for matmul in matmuls]
    _stack([matmul.input(1) for matmul in matmuls], sizes, -2)
    matmuls[0].validate_and_infer_types()
    last = list(matmuls)
    ports = [_bias(matmul, rows) for matmul, rows in zip(matmuls, sizes, strict=True)]
    biases = [port for port in ports if port is not None]
    if biases:  # all of a group have one, or none
        _stack(biases, sizes, -1)
        last = [bias.get_node() for bias in biases]
        last[0].validate_and_infer_types()
    targets = [node.output(0).get_target_inputs() for node in last]
    parts = op.variadic_split(last[0], op.constant(np.int64(2)), op.constant(np.array(sizes)))
    for part, inputs in zip(parts.outputs(), targets, strict=True):
        for target in inputs:
            target.replace_source_output(part)


def _stack(inputs: Sequence[ov.Input], sizes: Sequence[int], axis: int) -> None:
    """Make the first input that of all rows; what decompresses it stays, and so do its marks."""
    nodes = [each.get_source_output().get_node() for each in inputs]
    first = nodes[0]
    if first.get_type_name() == "Constant":
        if math.prod(first.get_output_shape(0)) > 1 or sizes[0] == 1:
            inputs[0].replace_source_output(_stacked(nodes, axis).output(0))
        return
    if first.get_type_name() == "Reshape":
        shape = [sum(sizes), *first.get_output_shape(0)[1:]]
        first.input(1).replace_source_output(op.constant(np.array(shape, np.int64)).output(0))
        _stack([node.input(0) for node in nodes], sizes, -len(first.get_input_shape(0)))
    else:
        for ports in zip(*(node.inputs() for node in nodes), strict=True):
            _stack(ports, sizes, axis)
    first.validate_and_infer_types()


def _stacked(constants: Sequence[ov.Node], axis: int) -> ov.Node:
    """One constant of the rows of several; 4-bit values stand two to a byte, row after row."""
    shape = list(constants[0].get_output_shape(0))
    shape[axis] = sum(constant.get_output_shape(0)[axis] for constant in constants)
    tensor = ov.Tensor(constants[0].get_element_type(), ov.Shape(shape))
    data = tensor.data.reshape(-1).view(np.uint8)
    ends = accumulate(constant.get_byte_size() for constant in constants)
    for constant, end in zip(constants, ends, strict=True):
        data[end - constant.get_byte_size() : end] = constant.data.reshape(-1).view(np.uint8)
    return ov.op.Constant(tensor, shared_memory=True)
