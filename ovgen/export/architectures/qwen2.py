"""Qwen2 and Qwen2.5 (Yang et al., 2024): llama with biases before the attention."""

from __future__ import annotations

import openvino as ov

from ovgen.export.blocks import embed, head, rms_norms
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.feed_forward import GatedMLP
from ovgen.export.graph import DecoderGraph
from ovgen.export.rope import read_rope
from ovgen.export.self_attention import Heads, SelfAttention
from ovgen.export.weight_reader import WeightReader


def build(config: CheckpointConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    graph = DecoderGraph()
    attention = SelfAttention(graph, weights, Heads.of(config), bias=True)
    feed_forward = GatedMLP(
        weights,
        config.hidden_size,
        config.intermediate_size,
        config.get_activation(default="silu"),
    )
    norm = rms_norms(config, weights)
    rotary = graph.rotary(read_rope(config))
    window = config.get_window() if config.get_bool("use_sliding_window", default=False) else None
    first = config.get_int("max_window_layers", default=28, min=0)
    slides = config.sliding_layers(lambda layer: layer >= first)
    full, near = graph.causal_mask(), graph.causal_mask(window)

    embedded = embed(graph, config, weights)
    x = embedded.tokens
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        mask = near if slides[layer] else full
        h = norm(x, f"{name}.input_layernorm")
        x = x + attention(h, f"{name}.self_attn", layer, mask, rotary)
        h = norm(x, f"{name}.post_attention_layernorm")
        x = x + feed_forward(h, f"{name}.mlp")
    x = norm(x, "model.norm")
    logits = head(x, embedded, config, weights, tied=False)
    return graph.model(logits, "qwen2", weights.placeholders)
