"""A decoder as two graphs: its body, and the head that makes logits of hidden states.

So the body can be computed in bfloat16 and the logits still come in float32. In bfloat16, logits
around 25 have steps of 0.125: the likeliest tokens tie, and greedy decoding takes another one.
"""

from __future__ import annotations

import openvino as ov
from openvino import opset15 as op

from ovgen.model.sampled_tokens import find_head


def split_head(model: ov.Model) -> ov.Model | None:
    """Cut the head off a graph, and give it as one of its own.

    Args:
        model: changed in place, its first output becomes the head's input: float32 hidden states
            [batch, tokens, hidden], or with paged attention [tokens, 1, hidden].

    Returns:
        From hidden states to logits; None where the head was not found, or is needed elsewhere too.
    """
    result = model.output(0).get_node()
    head = find_head(result.input_value(0).get_node())
    if head is None or len(model.outputs) != 1:
        return None
    hidden = head.input_value(0)
    parameter = op.parameter(hidden.get_partial_shape(), hidden.get_element_type(), name="hidden")
    model.remove_result(result)
    model.add_results([op.result(hidden)])
    head.input(0).replace_source_output(parameter.output(0))
    return ov.Model([result], [parameter], "head")


def join_head(model: ov.Model, head: ov.Model) -> None:
    """Put a head that was cut off behind another graph's hidden states.

    Args:
        model: changed in place, its first output becomes the logits.
        head: as `split_head` gives it; of no use afterwards.
    """
    result = model.output(0).get_node()
    (parameter,), (logits,) = head.get_parameters(), head.get_results()
    for port in parameter.output(0).get_target_inputs():
        port.replace_source_output(result.input_value(0))
    model.remove_result(result)
    model.add_results([logits])
