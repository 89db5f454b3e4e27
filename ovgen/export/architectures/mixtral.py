"""Mixtral (Jiang et al., 2024): mistral with a mixture of experts."""

from __future__ import annotations

import openvino as ov

from ovgen.export.blocks import embed, head, rms_norms
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.experts import GatedExperts
from ovgen.export.graph import DecoderGraph
from ovgen.export.rope import read_rope
from ovgen.export.self_attention import Heads, SelfAttention
from ovgen.export.weight_reader import WeightReader


def build(config: CheckpointConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    config.require("hidden_act", "silu")
    graph = DecoderGraph()
    num_experts = config.get_int("num_local_experts", default=8)
    attention = SelfAttention(graph, weights, Heads.of(config))
    feed_forward = GatedExperts(
        weights,
        config.hidden_size,
        config.intermediate_size,
        num_experts,
        config.get_int("num_experts_per_tok", default=2, max=num_experts),
        names=("w1", "w3", "w2"),
    )
    norm = rms_norms(config, weights, eps=1e-5)
    rotary = graph.rotary(read_rope(config, theta=1e6))
    mask = graph.causal_mask(config.get_window())

    embedded = embed(graph, config, weights)
    x = embedded.tokens
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        h = norm(x, f"{name}.input_layernorm")
        x = x + attention(h, f"{name}.self_attn", layer, mask, rotary)
        h = norm(x, f"{name}.post_attention_layernorm")
        x = x + feed_forward(h, f"{name}.block_sparse_moe")
    x = norm(x, "model.norm")
    logits = head(x, embedded, config, weights, tied=False)
    return graph.model(logits, "mixtral", weights.placeholders)
