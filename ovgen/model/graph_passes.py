"""Changes to a graph between reading and compiling it."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import openvino as ov
from openvino import opset15 as op

from ovgen.errors import UnsupportedModelError
from ovgen.model.device_errors import first_line

SAMPLED_TOKENS = "sampled_tokens_indices"

# What may stand between the head's matmul and the logits: a bias, a scale, soft-capping, a cast.
_ELEMENTWISE = frozenset({"Add", "Subtract", "Multiply", "Divide", "Tanh", "Convert"})
INTEGER_WEIGHTS = (ov.Type.i4, ov.Type.u4, ov.Type.i8, ov.Type.u8)


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


def gather_sampled_tokens(model: ov.Model, axis: int = 1) -> bool:
    """Compute logits only where they are wanted: a long prompt needs those of its last token.

    Adds the input ``sampled_tokens_indices`` [num] int64, positions in the step's tokens, and
    gathers the hidden states by it before the head: logits become [batch, num, vocab], or with
    paged attention [num, 1, vocab].

    Args:
        model: changed in place.
        axis: of the tokens; 0 with paged attention.

    Returns:
        False where the head was not found; the graph is then as it was.
    """
    head = _find_head(model.output(0).get_node().input_value(0).get_node())
    if head is None:
        return False
    hidden = head.input_value(0)
    indices = op.parameter([-1], ov.Type.i64, name=SAMPLED_TOKENS)
    indices.output(0).set_names({SAMPLED_TOKENS})
    gathered = op.gather(hidden, indices, op.constant(np.int64(axis)))
    head.input(0).replace_source_output(gathered.output(0))
    model.add_parameters([indices])
    model.validate_nodes_and_infer_types()
    return True


def _find_head(node: ov.Node) -> ov.Node | None:
    """The matmul that makes the logits [batch, tokens, vocab], up from its last elementwise op."""
    while node.get_type_name() in _ELEMENTWISE:
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


def weight_group(model: ov.Model) -> int | None:
    """The group of neighbours that share a scale in most weights; None where none does."""
    sizes: Counter[int] = Counter()
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() in INTEGER_WEIGHTS:
            shape = node.get_output_shape(0)
            if len(shape) == 3:
                sizes[shape[2]] += math.prod(shape)
    return max(sizes, key=lambda group: sizes[group], default=None)
