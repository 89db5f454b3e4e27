"""Attention with linear biases (ALiBi; Press et al., 2022): positions as a slope for each head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from openvino import opset15 as op

from ovgen.export.graph import LOWEST, DecoderGraph
from ovgen.export.graph_weights import Value, const


def alibi_slopes(num_heads: int) -> list[float]:
    """The paper's slopes, as BLOOM and Falcon have them."""
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    # Where the heads are no power of two, the rest takes every other slope of twice as many.
    rest = [2.0 ** (-4 * (head + 1) / power) for head in range(0, 2 * power, 2)]
    return slopes + rest[: num_heads - power]


def mpt_slopes(num_heads: int, bias_max: float) -> list[float]:
    """MPT's slopes: the same for a power of two, and another choice for the rest."""
    power = 1 << math.ceil(math.log2(num_heads))
    slopes = [2.0 ** (-bias_max * (head + 1) / power) for head in range(power)]
    if power == num_heads:
        return slopes
    return (slopes[1::2] + slopes[::2])[:num_heads]


def alibi_mask(graph: DecoderGraph, slopes: Sequence[float]) -> Value:
    """The additive mask [batch, heads, tokens, past + tokens]: a slope by the key's position where
    a token sees it, which differs from a slope by the distance by what softmax does not notice.

    The PagedAttention transformation finds the slopes by this chain of operations, which is how
    BLOOM comes out of torch; they have to be the first factor.
    """
    positions = op.convert(graph.key_positions(), "f32")
    heads = len(slopes)
    biases = op.multiply(
        const(np.reshape(slopes, (heads, 1)), np.float32), op.unsqueeze(positions, const([0]))
    )
    biases = op.reshape(biases, const([heads, 1, -1]), False)
    biases = op.reshape(biases, const([1, heads, 1, -1]), False)
    return op.select(op.logical_not(graph.visible()), const(LOWEST, np.float32), biases)
