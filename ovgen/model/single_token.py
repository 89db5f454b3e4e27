"""A paged decoder with two bodies: for any batch, and for a step of one token, which is faster.

OpenVINO's CPU device takes about 2 us for each node whose shape might have changed since the step
before: a fifth of a small model's time for a token. A step of one token, which is what a lone
request takes, has the same shapes each time, so it gets a graph in which they are known. Both are
bodies of one If, for within one compiled model the device packs each weight once: it finds it by
the address of its constant.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import openvino as ov
from openvino import opset15 as op

from ovgen.model.graph_passes import copy_runtime_options
from ovgen.model.sampled_tokens import SAMPLED_TOKENS

SINGLE_TOKEN = "is_single_token"

# Inputs with an element for each token of a step, from which all other shapes follow.
_PER_TOKEN = ("input_ids", "position_ids", SAMPLED_TOKENS)


def add_single_token_body(model: ov.Model, cache: Mapping[str, ov.Tensor]) -> ov.Model:
    """A model that computes the same, and faster where its input ``is_single_token`` is true.

    Args:
        model: with paged attention and one output; it becomes a body of the other.
        cache: the KV cache's tensors by the names of their inputs, which become constants: what
            goes into a body as an input is copied.

    Returns:
        The model, whose inputs are those that are left, and ``is_single_token`` [1] bool: whether
        the step has one token, and so one row of output.
    """
    _make_constants(model, cache)
    single = model.clone()
    _fix_shapes(single)
    condition = op.parameter([1], ov.Type.boolean, name=SINGLE_TOKEN)
    condition.output(0).set_names({SINGLE_TOKEN})
    choice = op.if_op(condition)
    choice.set_then_body(single)
    choice.set_else_body(model)
    inputs = [condition]
    for one, other in zip(single.get_parameters(), model.get_parameters(), strict=True):
        names = other.output(0).get_names()
        outer = op.parameter(other.get_partial_shape(), other.get_element_type(), name=min(names))
        outer.output(0).set_names(names)
        choice.set_input(outer.output(0), one, other)
        inputs.append(outer)
    output = choice.set_output(single.get_results()[0], model.get_results()[0])
    both = ov.Model([op.result(output)], inputs, model.get_friendly_name())
    copy_runtime_options(model, both)
    return both


def _make_constants(model: ov.Model, cache: Mapping[str, ov.Tensor]) -> None:
    """Put tensors in the place of inputs; the device reads and writes their memory itself."""
    for parameter in model.get_parameters():
        name = parameter.output(0).get_any_name()
        if name in cache:
            constant = ov.op.Constant(cache[name], shared_memory=True)
            for port in parameter.output(0).get_target_inputs():
                port.replace_source_output(constant.output(0))
            model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()


def _fix_shapes(model: ov.Model) -> None:
    """Say inside the graph that there is one token; an If gives a body's inputs its own shapes."""
    for parameter in model.get_parameters():
        if parameter.output(0).get_any_name() in _PER_TOKEN:
            ports = parameter.output(0).get_target_inputs()
            single = op.reshape(parameter, op.constant(np.array([1])), False)
            for port in ports:
                port.replace_source_output(single.output(0))
    model.validate_nodes_and_infer_types()
