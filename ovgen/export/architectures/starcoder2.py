"""StarCoder 2 (Lozhkov et al., 2024): llama with layer norms, biases and a plain feed-forward."""

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
    config = config.renamed(layer_norm_eps="norm_epsilon")
    graph = DecoderGraph()
    bias = config.get_bool("use_bias", default=True)
    attention = SelfAttention(graph, weights, Heads.of(config), bias=bias, output_bias=bias)
    feed_forward = PlainMLP(
        weights,
        config.hidden_size,
        config.intermediate_size,
        config.get_activation(default="gelu_pytorch_tanh"),
        ("c_fc", "c_proj"),
        bias=bias,
    )
    norm = layer_norms(config, weights)
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
    logits = head(x, embedded, config, weights, tied=True)
    return graph.model(logits, "starcoder2", weights.placeholders)
