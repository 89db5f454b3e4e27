"""Gemma 2 (Riviere et al., 2024): gemma with norms after the blocks too, soft-capped logits and an
attention that slides in every other layer."""

from __future__ import annotations

import openvino as ov

from ovgen.export.blocks import embed, head, rms_norms
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.feed_forward import GatedMLP
from ovgen.export.graph import DecoderGraph, scale, soft_cap
from ovgen.export.rope import read_rope
from ovgen.export.self_attention import Heads, SelfAttention
from ovgen.export.weight_reader import WeightReader


def build(config: CheckpointConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    config.require("use_bidirectional_attention", False)
    graph = DecoderGraph()
    bias = config.get_bool("attention_bias", default=False)
    attention = SelfAttention(
        graph,
        weights,
        Heads.of(config),
        bias=bias,
        output_bias=bias,
        scale=config.get_float("query_pre_attn_scalar", default=256, min=1e-6) ** -0.5,
        cap=_cap(config, "attn_logit_softcapping", 50.0),
    )
    activation = config.get_activation("hidden_activation", default="gelu_pytorch_tanh")
    feed_forward = GatedMLP(weights, config.hidden_size, config.intermediate_size, activation)
    norm = rms_norms(config, weights, plus=1.0)
    rotary = graph.rotary(read_rope(config))
    slides = config.sliding_layers(lambda layer: layer % 2 == 0)
    full, near = graph.causal_mask(), graph.causal_mask(config.get_window(default=4096))

    embedded = embed(graph, config, weights)
    x = scale(embedded.tokens, config.hidden_size**0.5)
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        mask = near if slides[layer] else full
        h = norm(x, f"{name}.input_layernorm")
        h = attention(h, f"{name}.self_attn", layer, mask, rotary)
        x = x + norm(h, f"{name}.post_attention_layernorm")
        h = norm(x, f"{name}.pre_feedforward_layernorm")
        h = feed_forward(h, f"{name}.mlp")
        x = x + norm(h, f"{name}.post_feedforward_layernorm")
    x = norm(x, "model.norm")
    logits = head(x, embedded, config, weights, tied=True)
    logits = soft_cap(logits, _cap(config, "final_logit_softcapping", 30.0))
    return graph.model(logits, "gemma2", weights.placeholders)


def _cap(config: CheckpointConfig, key: str, default: float) -> float | None:
    """The cap, None where the config has null for it."""
    if key in config.values and key not in config:
        return None
    return config.get_float(key, default=default, min=1e-6)
