"""OPT (Zhang et al., 2022)."""

from __future__ import annotations

import openvino as ov

from ovgen.export.blocks import dense, embed, head, layer_norms, positions
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.feed_forward import PlainMLP
from ovgen.export.graph import DecoderGraph
from ovgen.export.self_attention import Heads, SelfAttention
from ovgen.export.weight_reader import WeightReader

_OFFSET = 2  # of the table of positions


def build(config: CheckpointConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    config = config.renamed(intermediate_size="ffn_dim", hidden_act="activation_function")
    config.require("layer_norm_elementwise_affine", True)
    graph, hidden = DecoderGraph(), config.hidden_size
    bias = config.get_bool("enable_bias", default=True)
    attention = SelfAttention(
        graph, weights, Heads.of(config), bias=bias, output_bias=bias, output="out_proj"
    )
    feed_forward = PlainMLP(
        weights,
        hidden,
        config.intermediate_size,
        config.get_activation(default="relu"),
        ("fc1", "fc2"),
        bias=bias,
    )
    norm, mask = layer_norms(config, weights), graph.causal_mask()
    norm_first = config.get_bool("do_layer_norm_before", default=True)
    embedding_size = config.get_int("word_embed_proj_dim", default=hidden)
    is_projected = embedding_size != hidden

    base = f"{weights.prefix('model', 'decoder.embed_tokens.weight')}decoder."
    embedded = embed(graph, config, weights, f"{base}embed_tokens.weight", embedding_size)
    x = embedded.tokens
    if is_projected:
        x = dense(x, f"{base}project_in", hidden, embedding_size, weights)
    x = x + positions(graph, config, weights, f"{base}embed_positions.weight", offset=_OFFSET)
    for layer in range(config.num_hidden_layers):
        name = f"{base}layers.{layer}"
        first, second = f"{name}.self_attn_layer_norm", f"{name}.final_layer_norm"
        if norm_first:
            x = x + attention(norm(x, first), f"{name}.self_attn", layer, mask, None)
            x = x + feed_forward(norm(x, second), name)
        else:  # OPT 350M
            x = norm(x + attention(x, f"{name}.self_attn", layer, mask, None), first)
            x = norm(x + feed_forward(x, name), second)
    if norm_first and not config.get_bool("_remove_final_layer_norm", default=False):
        x = norm(x, f"{base}final_layer_norm")
    if is_projected:
        x = dense(x, f"{base}project_out", embedding_size, hidden, weights)
    logits = head(x, embedded, config, weights, tied=True, size=embedding_size)
    return graph.model(logits, "opt", weights.placeholders)
