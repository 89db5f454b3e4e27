"""The parts that many decoders share, with their weights: embeddings, norms, projections, the head.

They take their tensors by transformers' names, under the name of the module that is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from openvino import opset15 as op

from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.graph import DecoderGraph, layer_norm, num_features, rms_norm
from ovgen.export.graph_weights import Value, const, embedding, linear, matrix, tied_linear
from ovgen.export.weight_reader import WeightReader

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head"

Norm = Callable[[Value, str], Value]  # of a value, with the weights under a name


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """The embedding table, and the tokens' rows of it [batch, tokens, hidden]."""

    table: Value
    tokens: Value


def embed(
    graph: DecoderGraph,
    config: CheckpointConfig,
    weights: WeightReader,
    name: str = EMBEDDING,
    size: int | None = None,
) -> Embedding:
    """Look the tokens up; ``size``: features of the table, if not the hidden size."""
    shape = (config.vocab_size, size or config.hidden_size)
    table = matrix(weights.matrix(name, shape, is_table=True))
    return Embedding(table, embedding(table, graph.input_ids))


def positions(
    graph: DecoderGraph,
    config: CheckpointConfig,
    weights: WeightReader,
    name: str,
    *,
    offset: int = 0,
) -> Value:
    """Learned embeddings of the tokens' positions [batch, tokens, hidden].

    ``offset``: of the first position's row in the table.
    """
    shape = (config.max_position_embeddings + offset, config.hidden_size)
    table = matrix(weights.matrix(name, shape, is_table=True))
    rows = op.add(graph.position_ids, const(offset)) if offset else graph.position_ids
    return embedding(table, rows)


def head(
    x: Value,
    embedded: Embedding,
    config: CheckpointConfig,
    weights: WeightReader,
    *,
    tied: bool,
    bias: bool = False,
    name: str = HEAD,
    size: int | None = None,
) -> Value:
    """Logits [batch, tokens, vocab].

    Args:
        tied: whether the embedding's table is used again, where the config does not say.
        bias: whether a head of its own has one.
        name: of its module.
        size: features of x, if not the hidden size.
    """
    if config.get_bool("tie_word_embeddings", default=tied):
        weights.ignore(f"{name}.weight")
        return tied_linear(x, embedded.table)
    cols = size or config.hidden_size
    return dense(x, name, config.vocab_size, cols, weights, bias=bias)


def dense(
    x: Value,
    name: str,
    rows: int,
    cols: int,
    weights: WeightReader,
    *,
    bias: bool = False,
    transposed: bool = False,
) -> Value:
    """``x @ weight.T + bias``: [batch, tokens, cols] -> [batch, tokens, rows].

    ``transposed``: the file has the weight as [cols, rows].
    """
    weight = weights.matrix(f"{name}.weight", (rows, cols), transposed=transposed)
    return linear(x, weight, weights.vector(f"{name}.bias", rows) if bias else None)


def rms_norms(
    config: CheckpointConfig, weights: WeightReader, *, eps: float = 1e-6, plus: float = 0.0
) -> Norm:
    """The norm of all layers; ``eps`` where the config has none, ``plus`` added to the weights."""
    eps = config.get_float("rms_norm_eps", default=eps, min=0, max=1)

    def norm(x: Value, name: str) -> Value:
        size = num_features(x)
        return rms_norm(x, weights.vector(f"{name}.weight", size) + np.float32(plus), eps)

    return norm


def layer_norms(
    config: CheckpointConfig, weights: WeightReader, *, eps: float = 1e-5, bias: bool = True
) -> Norm:
    """The norm of all layers; ``eps`` where the config has none."""
    eps = config.get_float("layer_norm_eps", default=eps, min=0, max=1)

    def norm(x: Value, name: str) -> Value:
        size = num_features(x)
        shift = weights.vector(f"{name}.bias", size) if bias else None
        return layer_norm(x, weights.vector(f"{name}.weight", size), shift, eps)

    return norm
