"""GPT-NeoX (Black et al., 2022): Pythia, Dolly 2."""

from __future__ import annotations

import openvino as ov

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
    config = config.renamed(rope_theta="rotary_emb_base", partial_rotary_factor="rotary_pct")
    graph = DecoderGraph()
    heads = Heads.of(config)
    bias = config.get_bool("attention_bias", default=True)
    attention = SelfAttention(
        graph,
        weights,
        heads,
        bias=bias,
        output_bias=bias,
        output="dense",
        fused="query_key_value",
        fused_order=parts_first(heads.query, 1, heads.dim),
    )
    feed_forward = PlainMLP(
        weights,
        config.hidden_size,
        config.intermediate_size,
        config.get_activation(default="gelu"),
        ("dense_h_to_4h", "dense_4h_to_h"),
    )
    norm = layer_norms(config, weights)
    is_parallel = config.get_bool("use_parallel_residual", default=True)
    rotary, mask = graph.rotary(read_rope(config, partial=0.25)), graph.causal_mask()

    embedded = embed(graph, config, weights, "gpt_neox.embed_in.weight")
    x = embedded.tokens
    for layer in range(config.num_hidden_layers):
        name = f"gpt_neox.layers.{layer}"
        h = norm(x, f"{name}.input_layernorm")
        attended = x + attention(h, f"{name}.attention", layer, mask, rotary)
        h = norm(x if is_parallel else attended, f"{name}.post_attention_layernorm")
        x = attended + feed_forward(h, f"{name}.mlp")
    x = norm(x, "gpt_neox.final_layer_norm")
    logits = head(x, embedded, config, weights, tied=False, name="embed_out")
    return graph.model(logits, "gpt_neox", weights.placeholders)
