"""Falcon (Almazrouei et al., 2023): 7B, 40B and 180B, 11B, and RW with ALiBi."""

from __future__ import annotations

import openvino as ov

from ovgen.export.alibi import alibi_mask, alibi_slopes
from ovgen.export.blocks import embed, head, layer_norms
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.feed_forward import PlainMLP
from ovgen.export.graph import DecoderGraph
from ovgen.export.rope import read_rope
from ovgen.export.self_attention import Heads, SelfAttention
from ovgen.export.tensor_views import parts_first
from ovgen.export.weight_reader import WeightReader


def build(config: CheckpointConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    config = config.renamed(hidden_size="n_embed", layer_norm_eps="layer_norm_epsilon")
    graph = DecoderGraph()
    heads = _heads(config)
    bias = config.get_bool("bias", default=False)
    attention = SelfAttention(
        graph,
        weights,
        heads,
        bias=bias,
        output_bias=bias,
        output="dense",
        fused="query_key_value",
        fused_order=parts_first(heads.key_value, heads.query // heads.key_value, heads.dim),
    )
    feed_forward = PlainMLP(
        weights,
        config.hidden_size,
        config.get_int("ffn_hidden_size", default=4 * config.hidden_size, max=1 << 24),
        config.get_activation("activation", default="gelu"),
        ("dense_h_to_4h", "dense_4h_to_h"),
        bias=bias,
    )
    norm = layer_norms(config, weights)
    first, second = _norms(config)
    is_parallel = config.get_bool("parallel_attn", default=True)
    if config.get_bool("alibi", default=False):
        # Here the biases are scaled like the products that they are added to.
        slopes = [slope * heads.dim**-0.5 for slope in alibi_slopes(heads.query)]
        rotary, mask = None, alibi_mask(graph, slopes)
    else:
        rotary, mask = graph.rotary(read_rope(config)), graph.causal_mask()

    embedded = embed(graph, config, weights, "transformer.word_embeddings.weight")
    x = embedded.tokens
    for layer in range(config.num_hidden_layers):
        name = f"transformer.h.{layer}"
        h = norm(x, f"{name}.{first}")
        attended = x + attention(h, f"{name}.self_attention", layer, mask, rotary)
        if second is not None:
            h = norm(x if is_parallel else attended, f"{name}.{second}")
        x = attended + feed_forward(h, f"{name}.mlp")
    x = norm(x, "transformer.ln_f")
    logits = head(x, embedded, config, weights, tied=True)
    return graph.model(logits, "falcon", weights.placeholders)


def _heads(config: CheckpointConfig) -> Heads:
    query = config.num_attention_heads
    if config.get_bool("new_decoder_architecture", default=False):
        config = config.renamed(num_key_value_heads="num_kv_heads")
        key_value = config.num_key_value_heads
    else:
        key_value = 1 if config.get_bool("multi_query", default=True) else query
    return Heads(config.hidden_size, query, key_value, config.head_dim)


def _norms(config: CheckpointConfig) -> tuple[str, str | None]:
    """Names of the norms before attention and feed-forward; None where these share one."""
    is_new = config.get_bool("new_decoder_architecture", default=False)
    if not config.get_bool("parallel_attn", default=True):
        if is_new:
            config.refuse("parallel_attn", "supported with new_decoder_architecture: true")
        return "input_layernorm", "post_attention_layernorm"
    if is_new and config.get_int("num_ln_in_parallel_attn", default=2, max=2) == 2:
        return "ln_attn", "ln_mlp"
    return "input_layernorm", None
