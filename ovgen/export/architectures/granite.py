"""Granite 3 (Granite team, 2024): llama with a factor for each of its parts."""

from __future__ import annotations

import openvino as ov

from ovgen.export.blocks import embed, head, rms_norms
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
        scale=config.get_float("attention_multiplier", default=1.0),
    )
    feed_forward = GatedMLP(
        weights,
        config.hidden_size,
        config.intermediate_size,
        config.get_activation(default="silu"),
        bias=config.get_bool("mlp_bias", default=False),
    )
    norm = rms_norms(config, weights)
    residual = config.get_float("residual_multiplier", default=1.0)
    rotary, mask = graph.rotary(read_rope(config)), graph.causal_mask()

    embedded = embed(graph, config, weights)
    x = scale(embedded.tokens, config.get_float("embedding_multiplier", default=1.0))
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        h = norm(x, f"{name}.input_layernorm")
        x = x + scale(attention(h, f"{name}.self_attn", layer, mask, rotary), residual)
        h = norm(x, f"{name}.post_attention_layernorm")
        x = x + scale(feed_forward(h, f"{name}.mlp"), residual)
    x = norm(x, "model.norm")
    logits = head(x, embedded, config, weights, tied=False)
    logits = scale(logits, 1 / config.get_float("logits_scaling", default=1.0, min=1e-6))
    return graph.model(logits, "granite", weights.placeholders)
