"""OLMo 2 (OLMo team, 2024): llama with norms after the blocks, and of queries and keys."""

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
    norm = rms_norms(config, weights, eps=1e-5)
    attention = SelfAttention(
        graph,
        weights,
        Heads.of(config),
        bias=bias,
        output_bias=bias,
        norm=lambda x, name: norm(x, f"{name}_norm"),
    )
    feed_forward = GatedMLP(
        weights,
        config.hidden_size,
        config.intermediate_size,
        config.get_activation(default="silu"),
    )
    rotary, mask = graph.rotary(read_rope(config)), graph.causal_mask()

    embedded = embed(graph, config, weights)
    x = embedded.tokens
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        h = attention(x, f"{name}.self_attn", layer, mask, rotary)
        x = x + norm(h, f"{name}.post_attention_layernorm")
        h = feed_forward(x, f"{name}.mlp")
        x = x + norm(h, f"{name}.post_feedforward_layernorm")
    x = norm(x, "model.norm")
    logits = head(x, embedded, config, weights, tied=False)
    return graph.model(logits, "olmo2", weights.placeholders)
