"""Phi-3 (Abdin et al., 2024): llama with fused projections and, in long models, two sets of rotary
factors."""

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
    attention = SelfAttention(graph, weights, Heads.of(config), fused="qkv_proj")
    feed_forward = GatedMLP(
        weights,
        config.hidden_size,
        config.intermediate_size,
        config.get_activation(default="silu"),
        fused="gate_up_proj",
    )
    norm = rms_norms(config, weights, eps=1e-5)
    # The first long models call theirs "su" or "yarn", and mean longrope.
    rope = read_rope(config, synonyms={"su": "longrope", "yarn": "longrope"})
    rotary, mask = graph.rotary(rope), graph.causal_mask(config.get_window())

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
    return graph.model(logits, "phi3", weights.placeholders)
