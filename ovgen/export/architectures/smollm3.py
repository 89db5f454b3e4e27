"""SmolLM3 (Bakouch et al., 2025): llama with no rotary embedding in every fourth layer."""

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
    bias = config.get_bool("attention_bias", default=False)
    attention = SelfAttention(graph, weights, Heads.of(config), bias=bias, output_bias=bias)
    feed_forward = GatedMLP(
        weights,
        config.hidden_size,
        config.intermediate_size,
        config.get_activation(default="silu"),
        bias=config.get_bool("mlp_bias", default=False),
    )
    norm = rms_norms(config, weights)
    rotary = graph.rotary(read_rope(config, theta=2e6))
    rotates = _rotary_layers(config)
    window = config.get_window() if config.get_bool("use_sliding_window", default=False) else None
    slides = config.sliding_layers(lambda layer: not rotates[layer])
    full, near = graph.causal_mask(), graph.causal_mask(window)

    embedded = embed(graph, config, weights)
    x = embedded.tokens
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        mask = near if slides[layer] else full
        h = norm(x, f"{name}.input_layernorm")
        x = x + attention(h, f"{name}.self_attn", layer, mask, rotary if rotates[layer] else None)
        h = norm(x, f"{name}.post_attention_layernorm")
        x = x + feed_forward(h, f"{name}.mlp")
    x = norm(x, "model.norm")
    logits = head(x, embedded, config, weights, tied=True)
    return graph.model(logits, "smollm3", weights.placeholders)


def _rotary_layers(config: CheckpointConfig) -> list[bool]:
    """Which layers rotate; the field's name says the opposite of its ones."""
    count = config.num_hidden_layers
    if "no_rope_layers" in config:
        return [flag != 0 for flag in config.get_floats("no_rope_layers", count)]
    period = config.get_int("no_rope_layer_interval", default=4)
    return [(layer + 1) % period != 0 for layer in range(count)]
