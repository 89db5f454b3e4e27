"""Command R (Cohere, 2024): attention and feed-forward side by side, and scaled logits."""

from __future__ import annotations

from functools import partial

import openvino as ov

from ovgen.export.blocks import embed, head, layer_norms
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.feed_forward import GatedMLP
from ovgen.export.graph import DecoderGraph, layer_norm, scale
from ovgen.export.graph_weights import Value
from ovgen.export.rope import read_rope
from ovgen.export.self_attention import Heads, SelfAttention
from ovgen.export.tensor_views import halves_first
from ovgen.export.weight_reader import WeightReader


def build(config: CheckpointConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    graph = DecoderGraph()
    bias = config.get_bool("attention_bias", default=False)
    has_head_norm = config.get_bool("use_qk_norm", default=False)
    attention = SelfAttention(
        graph,
        weights,
        Heads.of(config),
        bias=bias,
        output_bias=bias,
        interleaved=config.head_dim,
        head_norm=partial(_head_norm, config, weights) if has_head_norm else None,
    )
    feed_forward = GatedMLP(
        weights,
        config.hidden_size,
        config.intermediate_size,
        config.get_activation(default="silu"),
    )
    norm = layer_norms(config, weights, bias=False)
    rotary, mask = graph.rotary(read_rope(config, theta=5e5)), graph.causal_mask()

    embedded = embed(graph, config, weights)
    x = embedded.tokens
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        h = norm(x, f"{name}.input_layernorm")
        x = x + attention(h, f"{name}.self_attn", layer, mask, rotary)
        x = x + feed_forward(h, f"{name}.mlp")
    x = norm(x, "model.norm")
    logits = head(x, embedded, config, weights, tied=True)
    logits = scale(logits, config.get_float("logit_scale", default=0.0625))
    return graph.model(logits, "cohere", weights.placeholders)


def _head_norm(config: CheckpointConfig, weights: WeightReader, x: Value, name: str) -> Value:
    """A layer norm of each head with weights of its own, in the order that the heads have here."""
    shape = x.get_output_partial_shape(0)
    heads, head_dim = shape[2].get_length(), shape[3].get_length()
    rows = weights.array(f"{name}_norm.weight", (heads, head_dim))
    eps = config.get_float("layer_norm_eps", default=1e-5, min=0, max=1)
    ordered = rows[:, halves_first(1, head_dim)].reshape(1, 1, heads, head_dim)
    return layer_norm(x, ordered, None, eps)
