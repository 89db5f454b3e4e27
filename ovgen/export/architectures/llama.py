"""Llama (Touvron et al., 2023) and the families that reuse it: SmolLM2, TinyLlama, Llama 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from ovgen.errors import ModelFormatError, UnsupportedModelError
from ovgen.export.gguf import GGUFFile
from ovgen.export.graph import (
    DecoderGraph,
    Value,
    attention,
    embedding,
    linear,
    linears,
    matrix,
    merge_heads,
    rms_norm,
    rotary_embedding,
    rotate,
    split_heads,
    swiglu,
    tied_linear,
)
from ovgen.export.weight_reader import WeightReader
from ovgen.export.weights import unpermute

_LIMIT = 1 << 20  # no size in the metadata may be larger


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """The sizes of a llama model, by transformers' names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_factor: float  # positions are divided by it; 1 for none
    max_position_embeddings: int
    tie_word_embeddings: bool

    @classmethod
    def from_gguf(cls, gguf: GGUFFile) -> LlamaConfig:
        """Read and check the metadata.

        Raises:
            ModelFormatError: a field is missing or absurd.
            UnsupportedModelError: a variant that this architecture file does not build.
        """

        def size(key: str, default: int | None = None) -> int:
            return gguf.get_int(f"llama.{key}", default=default, min=1, max=_LIMIT)

        _refuse_variants(gguf)
        hidden, heads = size("embedding_length"), size("attention.head_count")
        kv_heads = size("attention.head_count_kv", heads)
        head_dim = size("attention.key_length", max(hidden // heads, 1))
        for key in ("attention.value_length", "rope.dimension_count"):
            if size(key, head_dim) != head_dim:
                raise UnsupportedModelError(
                    f"{gguf.path}: llama.{key} is {size(key)} where a head has {head_dim}; "
                    "only models where they agree can be exported"
                )
        if heads % kv_heads or head_dim % 2:
            raise ModelFormatError(
                f"{gguf.path}: {heads} heads of {head_dim} over {kv_heads} key/value heads; the "
                "heads must be a multiple of the key/value heads, and their size even"
            )
        return cls(
            vocab_size=len(gguf.get_strings("tokenizer.ggml.tokens")),
            hidden_size=hidden,
            intermediate_size=size("feed_forward_length"),
            num_hidden_layers=size("block_count"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=gguf.get_float("llama.attention.layer_norm_rms_epsilon", min=0, max=1),
            rope_theta=gguf.get_float("llama.rope.freq_base", default=10000.0, min=1e-6),
            rope_factor=gguf.get_float("llama.rope.scaling.factor", default=1.0, min=1e-6)
            if gguf.get_str("llama.rope.scaling.type", default="none") == "linear"
            else 1.0,
            max_position_embeddings=gguf.get_int("llama.context_length", min=1, max=1 << 30),
            tie_word_embeddings="output.weight" not in gguf.tensors,
        )

    def to_dict(self) -> dict[str, Any]:
        """What transformers would have in config.json, token ids left out."""
        rope: dict[str, Any] = {"rope_theta": self.rope_theta, "rope_type": "default"}
        if self.rope_factor != 1.0:
            rope |= {"rope_type": "linear", "factor": self.rope_factor}
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": rope,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tie_word_embeddings,
        }


def _refuse_variants(gguf: GGUFFile) -> None:
    if gguf.get_int("llama.expert_count", default=0):
        raise UnsupportedModelError(
            f"{gguf.path}: a mixture of experts (llama.expert_count) cannot be exported"
        )
    scaling = gguf.get_str("llama.rope.scaling.type", default="none")
    if scaling not in ("none", "linear"):
        raise UnsupportedModelError(
            f"{gguf.path}: llama.rope.scaling.type is {scaling!r}; none and linear can be exported"
        )


def build(config: LlamaConfig, weights: WeightReader) -> ov.Model:
    """The stateful graph."""
    graph = DecoderGraph()
    hidden, eps = config.hidden_size, config.rms_norm_eps
    table = matrix(weights.matrix("token_embd.weight", (config.vocab_size, hidden), is_table=True))
    cos, sin = rotary_embedding(graph.position_ids, inverse_frequencies(config, weights))
    mask = graph.causal_mask()

    x = embedding(table, graph.input_ids)
    for layer in range(config.num_hidden_layers):
        name = f"blk.{layer}"
        h = rms_norm(x, weights.vector(f"{name}.attn_norm.weight", hidden), eps)
        query, key, value = projections(h, name, config, weights)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        key, value = graph.kv_cache(layer, key, value)
        h = merge_heads(attention(query, key, value, mask))
        x = x + output(h, name, config, weights)
        h = rms_norm(x, weights.vector(f"{name}.ffn_norm.weight", hidden), eps)
        x = x + feed_forward(h, name, config, weights)
    x = rms_norm(x, weights.vector("output_norm.weight", hidden), eps)
    return graph.model(head(x, table, config, weights), "llama")


def projections(x: Value, name: str, config: LlamaConfig, weights: WeightReader) -> list[Value]:
    """Query, key and value heads of one block, [batch, heads, tokens, head_dim]."""
    dim, heads, kv_heads = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    counts = (heads, kv_heads, kv_heads)
    sizes = [count * dim for count in counts]
    parts = [(f"{name}.attn_{kind}", size) for kind, size in zip("qkv", sizes, strict=True)]
    stacked = weights.stack(
        [(f"{part}.weight", size) for part, size in parts],
        config.hidden_size,
        interleaved=(heads, kv_heads, 0),
    )
    bias = None
    if f"{name}.attn_q.bias" in weights:
        q, k, v = (weights.vector(f"{part}.bias", size) for part, size in parts)
        bias = np.concatenate([unpermute(q, heads), unpermute(k, kv_heads), v])
    flat = linears(x, stacked, sizes, bias)
    return [split_heads(part, count, dim) for part, count in zip(flat, counts, strict=True)]


def output(x: Value, name: str, config: LlamaConfig, weights: WeightReader) -> Value:
    """The projection of the attended heads back to the hidden size."""
    width, hidden = config.num_attention_heads * config.head_dim, config.hidden_size
    bias = f"{name}.attn_output.bias"
    return linear(
        x,
        weights.matrix(f"{name}.attn_output.weight", (hidden, width)),
        weights.vector(bias, hidden) if bias in weights else None,
    )


def feed_forward(x: Value, name: str, config: LlamaConfig, weights: WeightReader) -> Value:
    """The gated feed-forward network ``down(silu(gate(x)) * up(x))``."""
    hidden, inner = config.hidden_size, config.intermediate_size
    parts = [(f"{name}.ffn_{kind}.weight", inner) for kind in ("gate", "up")]
    gate, up = linears(x, weights.stack(parts, hidden), [inner, inner])
    return linear(swiglu(gate, up), weights.matrix(f"{name}.ffn_down.weight", (hidden, inner)))


def head(x: Value, table: Value, config: LlamaConfig, weights: WeightReader) -> Value:
    """Logits [batch, tokens, vocab]: the embedding table again where there is no head."""
    if config.tie_word_embeddings:
        return tied_linear(x, table)
    return linear(x, weights.matrix("output.weight", (config.vocab_size, config.hidden_size)))


def inverse_frequencies(config: LlamaConfig, weights: WeightReader) -> npt.NDArray[np.float32]:
    """``theta^(-2i/d)`` [head_dim / 2]; Llama 3 divides each by a factor that the file gives."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    frequencies = (1.0 / config.rope_theta**exponents).astype(np.float32) / config.rope_factor
    if "rope_freqs.weight" in weights:
        frequencies = frequencies / weights.vector("rope_freqs.weight", config.head_dim // 2)
    return frequencies.astype(np.float32)
