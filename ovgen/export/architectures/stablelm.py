"""StableLM (Bellagente et al., 2024): llama with layer norms and a part of each head rotated."""

from __future__ import annotations

from functools import partial

import numpy as np
import openvino as ov

from ovgen.export.blocks import embed, head, layer_norms
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.feed_forward import GatedMLP
from ovgen.export.graph import DecoderGraph, layer_norm
from ovgen.export.graph_weights import Value
from ovgen.export.rope import read_rope
from ovgen.export.self_attention import Heads, SelfAttention
from ovgen.export.weight_reader import WeightReader


def build(config: CheckpointConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    graph = DecoderGraph()
    has_head_norm = config.get_bool("qk_layernorm", default=False)
    attention = SelfAttention(
        graph,
        weights,
        Heads.of(config),
        bias=config.get_bool("use_qkv_bias", default=False),
        head_norm=partial(_head_norm, config, weights) if has_head_norm else None,
    )
    feed_forward = GatedMLP(
        weights,
        config.hidden_size,
        config.intermediate_size,
        config.get_activation(default="silu"),
    )
    norm = layer_norms(config, weights)
    is_parallel = config.get_bool("use_parallel_residual", default=False)
    rotary, mask = graph.rotary(read_rope(config, partial=0.25)), graph.causal_mask()

    embedded = embed(graph, config, weights)
    x = embedded.tokens
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        h = norm(x, f"{name}.input_layernorm")
        x = x + attention(h, f"{name}.self_attn", layer, mask, rotary)
        if not is_parallel:
            h = norm(x, f"{name}.post_attention_layernorm")
        x = x + feed_forward(h, f"{name}.mlp")
    x = norm(x, "model.norm")
    logits = head(x, embedded, config, weights, tied=False)
    return graph.model(logits, "stablelm", weights.placeholders)


def _head_norm(config: CheckpointConfig, weights: WeightReader, x: Value, name: str) -> Value:
    """A layer norm for each head, without a bias."""
    shape = x.get_output_partial_shape(0)
    heads, head_dim = shape[2].get_length(), shape[3].get_length()
    names = (f"{name}_layernorm.norms.{number}.weight" for number in range(heads))
    rows = np.stack([weights.vector(each, head_dim) for each in names])
    # transformers gives these norms the config's eps, too.
    eps = config.get_float("layer_norm_eps", default=1e-5, min=0, max=1)
    return layer_norm(x, rows.reshape(1, 1, heads, head_dim), None, eps)
