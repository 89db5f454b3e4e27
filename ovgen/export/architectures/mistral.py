"""Mistral (Jiang et al., 2023): llama with an attention that slides over the last tokens."""

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
    config.require("attention_bias", False)
    graph = DecoderGraph()
    attention = SelfAttention(graph, weights, Heads.of(config))
    feed_forward = GatedMLP(
        weights,
        config.hidden_size,
        config.intermediate_size,
        config.get_activation(default="silu"),
    )
    norm = rms_norms(config, weights)
    rotary, mask = graph.rotary(read_rope(config)), graph.causal_mask(config.get_window())

    embedded = embed(graph, config, weights)
    x = embedded.tokens
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        h = norm(x, f"{name}.input_layernorm")
        x = x + attention(h, f"{name}.self_attn", layer, mask, rotary)
        h = norm(x, f"{name}.post_attention_layernorm")
        x = x + feed_forward(h, f"{name}.mlp")
    x = norm(x, "model.norm")
    logits = head(x, embedded, config, weights, tied=False)
    return graph.model(logits, "mistral", weights.placeholders)
