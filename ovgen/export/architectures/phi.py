"""Phi 1 and 2 (Gunasekar et al., 2023): attention and feed-forward side by side, with biases, and a
part of each head rotated."""

from __future__ import annotations

import openvino as ov

from ovgen.export.blocks import embed, head, layer_norms
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.feed_forward import PlainMLP
from ovgen.export.graph import DecoderGraph
from ovgen.export.rope import read_rope
from ovgen.export.self_attention import Heads, SelfAttention
from ovgen.export.weight_reader import WeightReader


def build(config: CheckpointConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    graph = DecoderGraph()
    norm = layer_norms(config, weights)
    has_head_norm = config.get_bool("qk_layernorm", default=False)
    attention = SelfAttention(
        graph,
        weights,
        Heads.of(config),
        bias=True,
        output_bias=True,
        output="dense",
        head_norm=(lambda x, name: norm(x, f"{name}_layernorm")) if has_head_norm else None,
    )
    feed_forward = PlainMLP(
        weights,
        config.hidden_size,
        config.intermediate_size,
        config.get_activation(default="gelu_new"),
        ("fc1", "fc2"),
    )
    rotary, mask = graph.rotary(read_rope(config, partial=0.5)), graph.causal_mask()

    embedded = embed(graph, config, weights)
    x = embedded.tokens
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        h = norm(x, f"{name}.input_layernorm")
        x = x + attention(h, f"{name}.self_attn", layer, mask, rotary)
        x = x + feed_forward(h, f"{name}.mlp")
    x = norm(x, "model.final_layernorm")
    logits = head(x, embedded, config, weights, tied=False, bias=True)
    return graph.model(logits, "phi", weights.placeholders)
