"""GPT-2 (Radford et al., 2019): learned positions, and weights stored as [inputs, outputs]."""

from __future__ import annotations

import openvino as ov

from ovgen.export.blocks import embed, head, layer_norms, positions
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.feed_forward import PlainMLP
from ovgen.export.graph import DecoderGraph
from ovgen.export.self_attention import Heads, SelfAttention
from ovgen.export.weight_reader import WeightReader

NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "hidden_act": "activation_function",
    "layer_norm_eps": "layer_norm_epsilon",
    "intermediate_size": "n_inner",
}


def build(config: CheckpointConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    config = config.renamed(**NAMES)
    config.require("add_cross_attention", False)
    graph = DecoderGraph()
    heads = Heads.of(config)
    attentions = [
        SelfAttention(
            graph,
            weights,
            heads,
            bias=True,
            output_bias=True,
            output="c_proj",
            fused="c_attn",
            transposed=True,
            scale=_scale(config, heads, layer),
        )
        for layer in range(config.num_hidden_layers)
    ]
    feed_forward = PlainMLP(
        weights,
        config.hidden_size,
        config.get_int("intermediate_size", default=4 * config.hidden_size, max=1 << 24),
        config.get_activation(default="gelu_new"),
        ("c_fc", "c_proj"),
        transposed=True,
    )
    norm, mask = layer_norms(config, weights), graph.causal_mask()

    base = weights.prefix("transformer", "wte.weight")
    embedded = embed(graph, config, weights, f"{base}wte.weight")
    x = embedded.tokens + positions(graph, config, weights, f"{base}wpe.weight")
    for layer, attention in enumerate(attentions):
        name = f"{base}h.{layer}"
        h = norm(x, f"{name}.ln_1")
        x = x + attention(h, f"{name}.attn", layer, mask, None)
        h = norm(x, f"{name}.ln_2")
        x = x + feed_forward(h, f"{name}.mlp")
    x = norm(x, f"{base}ln_f")
    logits = head(x, embedded, config, weights, tied=True)
    return graph.model(logits, "gpt2", weights.placeholders)


def _scale(config: CheckpointConfig, heads: Heads, layer: int) -> float | None:
    """Of a layer's attention, None for the usual one."""
    is_scaled = config.get_bool("scale_attn_weights", default=True)
    by_layer = config.get_bool("scale_attn_by_inverse_layer_idx", default=False)
    if is_scaled and not by_layer:
        return None
    scale = heads.dim**-0.5 if is_scaled else 1.0
    return scale / (layer + 1) if by_layer else scale
