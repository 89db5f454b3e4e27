"""MPT (MosaicML, 2023): positions by ALiBi, and no biases at all."""

from __future__ import annotations

import openvino as ov

from ovgen.export.alibi import alibi_mask, mpt_slopes
from ovgen.export.blocks import embed, head, layer_norms
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.feed_forward import PlainMLP
from ovgen.export.graph import DecoderGraph
from ovgen.export.self_attention import Heads, SelfAttention
from ovgen.export.weight_reader import WeightReader


def build(config: CheckpointConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    config = config.renamed(
        hidden_size="d_model",
        num_hidden_layers="n_layers",
        num_attention_heads="n_heads",
        max_position_embeddings="max_seq_len",
        layer_norm_eps="layer_norm_epsilon",
    )
    config.require("no_bias", True)
    config.require("logit_scale")
    options = config.get_object("attn_config") or CheckpointConfig({}, config.path)
    options.require("alibi", True)
    options.require("attn_type", "multihead_attention")
    options.require("prefix_lm", False)
    options.require("qk_ln", False)
    graph = DecoderGraph()
    heads = Heads.of(config)
    clip = options.find_float("clip_qkv", min=0)
    attention = SelfAttention(
        graph,
        weights,
        heads,
        output="out_proj",
        fused="Wqkv",
        clip=clip or None,
        scale=options.find_float("softmax_scale"),
    )
    feed_forward = PlainMLP(
        weights,
        config.hidden_size,
        config.get_int("expansion_ratio", default=4) * config.hidden_size,
        "gelu",
        ("up_proj", "down_proj"),
        bias=False,
    )
    norm = layer_norms(config, weights, bias=False)
    # MPT's own code takes the config's, transformers always 8.
    bias_max = options.get_float("alibi_bias_max", default=8, min=0, max=1024)
    mask = alibi_mask(graph, mpt_slopes(heads.query, bias_max))

    embedded = embed(graph, config, weights, "transformer.wte.weight")
    x = embedded.tokens
    for layer in range(config.num_hidden_layers):
        name = f"transformer.blocks.{layer}"
        h = norm(x, f"{name}.norm_1")
        x = x + attention(h, f"{name}.attn", layer, mask, None)
        h = norm(x, f"{name}.norm_2")
        x = x + feed_forward(h, f"{name}.ffn")
    x = norm(x, "transformer.norm_f")
    logits = head(x, embedded, config, weights, tied=True)
    return graph.model(logits, "mpt", weights.placeholders)
