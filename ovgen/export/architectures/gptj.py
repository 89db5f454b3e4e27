"""GPT-J (Wang and Komatsuzaki, 2021): one norm for attention and feed-forward, which stand side by
side, and the first features of each head rotated by neighbours."""

from __future__ import annotations

import openvino as ov

from ovgen.export.architectures.gpt2 import NAMES
from ovgen.export.blocks import embed, head, layer_norms
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.feed_forward import PlainMLP
from ovgen.export.graph import DecoderGraph
from ovgen.export.rope import default_rope
from ovgen.export.self_attention import Heads, SelfAttention
from ovgen.export.weight_reader import WeightReader


def build(config: CheckpointConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    config = config.renamed(**NAMES)
    graph = DecoderGraph()
    heads = Heads.of(config)
    # The published models have 64; a null rotates all of a head.
    rotary_dim = config.get_int(
        "rotary_dim", default=heads.dim if "rotary_dim" in config.values else 64, max=heads.dim
    )
    if rotary_dim % 2:
        config.fail(f"rotary_dim is {rotary_dim}, expected an even number")
    attention = SelfAttention(graph, weights, heads, output="out_proj", interleaved=rotary_dim)
    feed_forward = PlainMLP(
        weights,
        config.hidden_size,
        config.get_int("intermediate_size", default=4 * config.hidden_size, max=1 << 24),
        config.get_activation(default="gelu_new"),
        ("fc_in", "fc_out"),
    )
    norm = layer_norms(config, weights)
    rotary, mask = graph.rotary(default_rope(10000.0, rotary_dim)), graph.causal_mask()

    embedded = embed(graph, config, weights, "transformer.wte.weight")
    x = embedded.tokens
    for layer in range(config.num_hidden_layers):
        name = f"transformer.h.{layer}"
        h = norm(x, f"{name}.ln_1")
        x = x + attention(h, f"{name}.attn", layer, mask, rotary)
        x = x + feed_forward(h, f"{name}.mlp")
    x = norm(x, "transformer.ln_f")
    logits = head(x, embedded, config, weights, tied=False, bias=True)
    return graph.model(logits, "gptj", weights.placeholders)
