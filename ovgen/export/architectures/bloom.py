"""BLOOM (Le Scao et al., 2022): positions by ALiBi, and a norm of the embeddings."""

from __future__ import annotations

import openvino as ov

from ovgen.export.alibi import alibi_mask, alibi_slopes
from ovgen.export.blocks import embed, head, layer_norms
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.feed_forward import PlainMLP
from ovgen.export.graph import DecoderGraph
from ovgen.export.self_attention import Heads, SelfAttention
from ovgen.export.tensor_views import parts_first
from ovgen.export.weight_reader import WeightReader


def build(config: CheckpointConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    config = config.renamed(
        hidden_size="n_embed",
        num_hidden_layers="n_layer",
        num_attention_heads="n_head",
        layer_norm_eps="layer_norm_epsilon",
    )
    graph = DecoderGraph()
    heads = Heads.of(config)
    attention = SelfAttention(
        graph,
        weights,
        heads,
        bias=True,
        output_bias=True,
        output="dense",
        fused="query_key_value",
        fused_order=parts_first(heads.query, 1, heads.dim),
    )
    feed_forward = PlainMLP(
        weights,
        config.hidden_size,
        4 * config.hidden_size,
        "gelu_pytorch_tanh",
        ("dense_h_to_4h", "dense_4h_to_h"),
    )
    norm, mask = layer_norms(config, weights), alibi_mask(graph, alibi_slopes(heads.query))
    is_normed = config.get_bool("apply_residual_connection_post_layernorm", default=False)

    base = weights.prefix("transformer", "word_embeddings.weight")
    embedded = embed(graph, config, weights, f"{base}word_embeddings.weight")
    x = norm(embedded.tokens, f"{base}word_embeddings_layernorm")
    for layer in range(config.num_hidden_layers):
        name = f"{base}h.{layer}"
        h = norm(x, f"{name}.input_layernorm")
        x = (h if is_normed else x) + attention(h, f"{name}.self_attention", layer, mask, None)
        h = norm(x, f"{name}.post_attention_layernorm")
        x = (h if is_normed else x) + feed_forward(h, f"{name}.mlp")
    x = norm(x, f"{base}ln_f")
    logits = head(x, embedded, config, weights, tied=True)
    return graph.model(logits, "bloom", weights.placeholders)
