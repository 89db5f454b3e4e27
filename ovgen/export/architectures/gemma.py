"""Gemma (Mesnard et al., 2024): llama with scaled embeddings and norms by 1 + weight."""

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
    config.require("use_bidirectional_attention", False)
    graph = DecoderGraph()
    bias = config.get_bool("attention_bias", default=False)
    attention = SelfAttention(graph, weights, Heads.of(config), bias=bias, output_bias=bias)
    activation = config.get_activation(default="gelu_pytorch_tanh")
    feed_forward = GatedMLP(weights, config.hidden_size, config.intermediate_size, activation)
    norm = rms_norms(config, weights, plus=1.0)
    rotary, mask = graph.rotary(read_rope(config)), graph.causal_mask()

    embedded = embed(graph, config, weights)
    x = scale(embedded.tokens, config.hidden_size**0.5)
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        h = norm(x, f"{name}.input_layernorm")
        x = x + attention(h, f"{name}.self_attn", layer, mask, rotary)
        h = norm(x, f"{name}.post_attention_layernorm")
        x = x + feed_forward(h, f"{name}.mlp")
    x = norm(x, "model.norm")
    logits = head(x, embedded, config, weights, tied=True)
    return graph.model(logits, "gemma", weights.placeholders)
