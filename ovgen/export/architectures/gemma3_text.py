"""Gemma 3 (Kamath et al., 2025), text: gemma2 with norms of the query and key heads instead of the
cap, and a rotary embedding of their own in the layers whose attention slides."""

from __future__ import annotations

import openvino as ov

from ovgen.export.blocks import embed, head, rms_norms
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.feed_forward import GatedMLP
from ovgen.export.graph import DecoderGraph, scale, soft_cap
from ovgen.export.rope import Rope, default_rope, read_rope
from ovgen.export.self_attention import Heads, SelfAttention
from ovgen.export.weight_reader import WeightReader


def build(config: CheckpointConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    config.require("use_bidirectional_attention", False)
    graph = DecoderGraph()
    bias = config.get_bool("attention_bias", default=False)
    norm = rms_norms(config, weights, plus=1.0)
    attention = SelfAttention(
        graph,
        weights,
        Heads.of(config),
        bias=bias,
        output_bias=bias,
        head_norm=lambda x, name: norm(x, f"{name}_norm"),
        scale=config.get_float("query_pre_attn_scalar", default=256, min=1e-6) ** -0.5,
        cap=config.find_float("attn_logit_softcapping", min=1e-6),
    )
    activation = config.get_activation("hidden_activation", default="gelu_pytorch_tanh")
    feed_forward = GatedMLP(weights, config.hidden_size, config.intermediate_size, activation)
    period = config.get_int("sliding_window_pattern", default=6)
    slides = config.sliding_layers(lambda layer: (layer + 1) % period != 0)
    full, near = graph.causal_mask(), graph.causal_mask(config.get_window(default=4096))
    far_rotary = graph.rotary(read_rope(config, layer_type="full_attention", theta=1e6))
    near_rotary = graph.rotary(_sliding_rope(config))

    embedded = embed(graph, config, weights)
    x = scale(embedded.tokens, config.hidden_size**0.5)
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        mask, rotary = (near, near_rotary) if slides[layer] else (full, far_rotary)
        h = norm(x, f"{name}.input_layernorm")
        h = attention(h, f"{name}.self_attn", layer, mask, rotary)
        x = x + norm(h, f"{name}.post_attention_layernorm")
        h = norm(x, f"{name}.pre_feedforward_layernorm")
        h = feed_forward(h, f"{name}.mlp")
        x = x + norm(h, f"{name}.post_feedforward_layernorm")
    x = norm(x, "model.norm")
    logits = head(x, embedded, config, weights, tied=True)
    logits = soft_cap(logits, config.find_float("final_logit_softcapping", min=1e-6))
    return graph.model(logits, "gemma3_text", weights.placeholders)


def _sliding_rope(config: CheckpointConfig) -> Rope:
    if "rope_parameters" in config:
        return read_rope(config, layer_type="sliding_attention", theta=1e4)
    # transformers 4: rope_theta and rope_scaling are of the other layers.
    theta = config.get_float("rope_local_base_freq", default=1e4, min=1e-6)
    return default_rope(theta, config.head_dim)
