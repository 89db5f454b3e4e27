"""gpt-oss (OpenAI, 2025): a mixture of experts, and attention with sinks that slides in every other
layer."""

from __future__ import annotations

import openvino as ov

from ovgen.export.blocks import embed, head, rms_norms
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.experts import ClampedExperts
from ovgen.export.graph import DecoderGraph
from ovgen.export.rope import read_rope
from ovgen.export.self_attention import Heads, SelfAttention
from ovgen.export.weight_reader import WeightReader

_LIMIT = 7.0  # transformers computes with it whatever the config says


def build(config: CheckpointConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    config.require("hidden_act", "silu")
    config.require("swiglu_limit", _LIMIT)
    graph = DecoderGraph()
    bias = config.get_bool("attention_bias", default=True)
    attention = SelfAttention(
        graph, weights, Heads.of(config), bias=bias, output_bias=bias, sinks="sinks"
    )
    num_experts = config.get_int("num_local_experts", default=128)
    feed_forward = ClampedExperts(
        weights,
        config.hidden_size,
        config.intermediate_size,
        num_experts,
        config.get_int("num_experts_per_tok", default=4, max=num_experts),
        limit=_LIMIT,
    )
    norm = rms_norms(config, weights, eps=1e-5)
    slides = config.sliding_layers(lambda layer: layer % 2 == 0)
    full, near = graph.causal_mask(), graph.causal_mask(config.get_window(default=128))
    rotary = graph.rotary(read_rope(config, theta=150000.0))

    embedded = embed(graph, config, weights)
    x = embedded.tokens
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        mask = near if slides[layer] else full
        h = norm(x, f"{name}.input_layernorm")
        x = x + attention(h, f"{name}.self_attn", layer, mask, rotary)
        h = norm(x, f"{name}.post_attention_layernorm")
        x = x + feed_forward(h, f"{name}.mlp")
    x = norm(x, "model.norm")
    logits = head(x, embedded, config, weights, tied=False)
    return graph.model(logits, "gpt_oss", weights.placeholders)
