"""Command R7B (Cohere, 2024): cohere whose attention slides in three of four layers, the only
ones that rotate."""

from __future__ import annotations

import openvino as ov

from ovgen.export.blocks import embed, head, layer_norms
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.feed_forward import GatedMLP
from ovgen.export.graph import DecoderGraph, scale
from ovgen.export.rope import read_rope
from ovgen.export.self_attention import Heads, SelfAttention
from ovgen.export.weight_reader import WeightReader


def build(config: CheckpointConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    graph = DecoderGraph()
    bias = config.get_bool("attention_bias", default=False)
    attention = SelfAttention(
        graph,
        weights,
        Heads.of(config),
        bias=bias,
        output_bias=bias,
        interleaved=config.head_dim,
    )
    feed_forward = GatedMLP(
        weights,
        config.hidden_size,
        config.intermediate_size,
        config.get_activation(default="silu"),
    )
    norm = layer_norms(config, weights, bias=False)
    rotary = graph.rotary(read_rope(config))
    period = config.get_int("sliding_window_pattern", default=4)
    slides = config.sliding_layers(lambda layer: (layer + 1) % period != 0)
    full, near = graph.causal_mask(), graph.causal_mask(config.get_window(default=4096))

    embedded = embed(graph, config, weights)
    x = embedded.tokens
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        mask, turned = (near, rotary) if slides[layer] else (full, None)
        h = norm(x, f"{name}.input_layernorm")
        x = x + attention(h, f"{name}.self_attn", layer, mask, turned)
        x = x + feed_forward(h, f"{name}.mlp")
    x = norm(x, "model.norm")
    logits = head(x, embedded, config, weights, tied=True)
    logits = scale(logits, config.get_float("logit_scale", default=0.0625))
    return graph.model(logits, "cohere2", weights.placeholders)
