"""Changes to a graph between reading and compiling it."""

from __future__ import annotations

import math
from collections import Counter

import openvino as ov

from ovgen.errors import UnsupportedModelError
from ovgen.model.device_errors import first_line

_OPTIONS = "runtime_options"
_MATRIX = 256  # elements that a matrix of weights has at least
_INTEGERS = (ov.Type.i4, ov.Type.u4, ov.Type.i8, ov.Type.u8)


def page_attention(model: ov.Model) -> None:
    """Replace the KV cache's states by blocks that come as inputs, and the batch by ragged rows.

    Logits become [tokens, 1, vocab].

    Raises:
        UnsupportedModelError: the transformation does not know the graph's attention.
    """
    # Not a public name: who never pages does not need it.
    from openvino._offline_transformations import paged_attention_transformation

    try:
        paged_attention_transformation(model)
    except RuntimeError as exc:
        raise UnsupportedModelError(
            f"the graph's attention cannot be paged: {first_line(exc)}"
        ) from exc


def copy_runtime_options(source: ov.Model, target: ov.Model) -> None:
    """Let a graph that is made of another be compiled with the options that an IR names itself,
    such as a precision of its KV cache."""
    if source.has_rt_info([_OPTIONS]):
        target.set_rt_info(source.get_rt_info([_OPTIONS]), [_OPTIONS])


def weight_group(model: ov.Model) -> int | None:
    """The group of neighbours that share a scale in most weights; None where none does."""
    sizes: Counter[int] = Counter()
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() in _INTEGERS:
            shape = node.get_output_shape(0)
            if len(shape) == 3:
                sizes[shape[2]] += math.prod(shape)
    return max(sizes, key=lambda group: sizes[group], default=None)


def has_integer_weights(model: ov.Model) -> bool:
    """Whether any matrix of weights is stored as integers."""
    return any(
        node.get_type_name() == "Constant"
        and node.get_element_type() in _INTEGERS
        and math.prod(node.get_output_shape(0)) >= _MATRIX
        for node in model.get_ops()
    )
