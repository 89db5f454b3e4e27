"""Qwen3 MoE (Qwen team, 2025): qwen3 with a mixture of experts in most layers."""

from __future__ import annotations

import openvino as ov

from ovgen.export.blocks import embed, head, rms_norms
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.experts import GatedExperts
from ovgen.export.feed_forward import GatedMLP
from ovgen.export.graph import DecoderGraph
from ovgen.export.rope import read_rope
from ovgen.export.self_attention import Heads, SelfAttention
from ovgen.export.weight_reader import WeightReader


def build(config: CheckpointConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    config.require("hidden_act", "silu")
    graph = DecoderGraph()
    norm = rms_norms(config, weights)
    bias = config.get_bool("attention_bias", default=False)
    attention = SelfAttention(
        graph,
        weights,
        Heads.of(config),
        bias=bias,
        output_bias=bias,
        head_norm=lambda x, name: norm(x, f"{name}_norm"),
    )
    num_experts = config.get_int("num_experts", default=128)
    sparse = GatedExperts(
        weights,
        config.hidden_size,
        config.get_int("moe_intermediate_size", default=768, max=1 << 24),
        num_experts,
        config.get_int("num_experts_per_tok", default=8, max=num_experts),
        is_normalized=config.get_bool("norm_topk_prob", default=False),
    )
    dense = GatedMLP(weights, config.hidden_size, config.intermediate_size, "silu")
    is_sparse = _sparse_layers(config)
    slides = config.get_bool("use_sliding_window", default=False)
    mask = graph.causal_mask(config.get_window(default=4096) if slides else None)
    rotary = graph.rotary(read_rope(config))

    embedded = embed(graph, config, weights)
    x = embedded.tokens
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        h = norm(x, f"{name}.input_layernorm")
        x = x + attention(h, f"{name}.self_attn", layer, mask, rotary)
        h = norm(x, f"{name}.post_attention_layernorm")
        x = x + (sparse if is_sparse[layer] else dense)(h, f"{name}.mlp")
    x = norm(x, "model.norm")
    logits = head(x, embedded, config, weights, tied=False)
    return graph.model(logits, "qwen3_moe", weights.placeholders)


def _sparse_layers(config: CheckpointConfig) -> list[bool]:
    """Which layers have experts."""
    step = config.get_int("decoder_sparse_step", default=1)
    dense = config.get_ints("mlp_only_layers", max=config.num_hidden_layers)
    return [
        layer not in dense and (layer + 1) % step == 0 for layer in range(config.num_hidden_layers)
    ]
