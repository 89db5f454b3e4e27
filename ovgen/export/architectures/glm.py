"""GLM-4 9B (GLM team, 2024): llama with half of each head rotated by neighbours."""

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
    rope = read_rope(config, partial=0.5)
    attention = SelfAttention(
        graph,
        weights,
        Heads.of(config),
        bias=config.get_bool("attention_bias", default=True),
        interleaved=rope.dim,
    )
    feed_forward = GatedMLP(
        weights,
        config.hidden_size,
        config.intermediate_size,
        config.get_activation(default="silu"),
        fused="gate_up_proj",
    )
    norm = rms_norms(config, weights, eps=1.5625e-7)
    rotary, mask = graph.rotary(rope), graph.causal_mask()

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
    return graph.model(logits, "glm", weights.placeholders)
