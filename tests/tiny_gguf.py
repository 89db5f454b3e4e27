"""Tiny llama GGUF files, the same on every machine, written with the gguf package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCAB = 256, 512, 2, 8, 4, 160
HEAD_DIM = HIDDEN // HEADS
TYPES = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"),
)
PROMPT = (3, 141, 59, 26, 53, 58, 97, 93, 23, 84, 62, 64)

# Where the half-precision scales of a block are, and what makes weights of about 0.06.
_SCALES = {
    "Q2_K": ((80, 4e-3), (82, 6e-3)),
    "Q3_K": ((108, 1e-3),),
    "Q4_K": ((0, 1e-4), (2, 7.5e-4)),
    "Q5_K": ((0, 5e-5), (2, 7.75e-4)),
    "Q6_K": ((208, 3e-5),),
    "IQ4_NL": ((0, 6e-4),),
    "IQ4_XS": ((0, 3e-5),),
    "MXFP4": (),  # its scale is a byte, the exponent of a power of two
}


@dataclass(frozen=True)
class Variant:
    """A file to be written; `value_type` is that of the value projections where it differs."""

    type: str
    value_type: str | None = None
    is_tied: bool = True
    has_bias: bool = False
    has_rope_factors: bool = False
    rope_scaling: float | None = None


VARIANTS = {name: Variant(name) for name in TYPES} | {
    "untied": Variant("Q4_1", is_tied=False),
    "mixed": Variant("Q4_K", value_type="Q6_K", is_tied=False),
    "bias": Variant("Q8_0", has_bias=True),
    "llama3_rope": Variant("Q4_0", has_rope_factors=True),
    "linear_rope": Variant("Q5_0", rope_scaling=4.0),
}


def write_tiny_gguf(path: Path, variant: Variant, inner: int = INNER) -> Path:
    """Write the file of a variant, its feed-forward network as wide as asked."""
    random = np.random.default_rng(7)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    if variant.rope_scaling is not None:
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_float32("llama.rope.scaling.factor", variant.rope_scaling)
    _add_tokenizer(writer)

    def vector(name: str, size: int, around: float) -> None:
        writer.add_tensor(name, _uniform(random, (size,), 0.2) + np.float32(around))

    def matrix(name: str, rows: int, cols: int, type_name: str = variant.type) -> None:
        quant = Type[type_name]
        writer.add_tensor(name, _blocks(random, rows, cols, type_name), raw_dtype=quant)

    matrix("token_embd.weight", VOCAB, HIDDEN)
    for layer in range(LAYERS):
        name = f"blk.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            vector(f"{name}.{norm}.weight", HIDDEN, 1.0)
        matrix(f"{name}.attn_q.weight", HIDDEN, HIDDEN)
        matrix(f"{name}.attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        value_type = variant.value_type or variant.type
        matrix(f"{name}.attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN, value_type)
        matrix(f"{name}.attn_output.weight", HIDDEN, HIDDEN)
        matrix(f"{name}.ffn_gate.weight", inner, HIDDEN)
        matrix(f"{name}.ffn_up.weight", inner, HIDDEN)
        matrix(f"{name}.ffn_down.weight", HIDDEN, inner)
        if variant.has_bias:
            vector(f"{name}.attn_q.bias", HIDDEN, 0.0)
            vector(f"{name}.attn_k.bias", KV_HEADS * HEAD_DIM, 0.0)
            vector(f"{name}.attn_v.bias", KV_HEADS * HEAD_DIM, 0.0)
            vector(f"{name}.attn_output.bias", HIDDEN, 0.0)
    vector("output_norm.weight", HIDDEN, 1.0)
    if not variant.is_tied:
        matrix("output.weight", VOCAB, HIDDEN)
    if variant.has_rope_factors:
        writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, HEAD_DIM // 2, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: GGUFWriter) -> None:
    printable = [chr(code) for code in range(33, 127)]
    tokens = ["<|end|>", *printable, "Ġ", "Ċ", *(a + b for a in "abcdefgh" for b in "ijklmnop")]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens[:VOCAB])
    writer.add_token_types([3] + [1] * (VOCAB - 1))
    merges = [f"{a} {b}" for a in "abcdefgh" for b in "ijklmnop"]
    writer.add_token_merges(merges[: VOCAB - 97])
    writer.add_eos_token_id(0)


def _uniform(random: np.random.Generator, shape: tuple[int, ...], width: float) -> np.ndarray:
    # From integers, whose stream numpy keeps the same from version to version.
    steps = random.integers(-(1 << 20), 1 << 20, shape)
    return (steps * (width / (1 << 20))).astype(np.float32)


def _blocks(random: np.random.Generator, rows: int, cols: int, type_name: str) -> np.ndarray:
    """Values in the block format of a type; where `gguf` has no quantizer, random blocks."""
    if type_name not in _SCALES:
        return quantize(_uniform(random, (rows, cols), 0.12), Type[type_name])
    size, nbytes = GGML_QUANT_SIZES[Type[type_name]]
    blocks = random.integers(0, 256, (rows, cols // size, nbytes)).astype(np.uint8)
    for offset, scale in _SCALES[type_name]:
        values = scale * (1 + random.integers(0, 16, blocks.shape[:2]) / 16)
        halves = values.astype(np.float16)[..., None].view(np.uint8)
        blocks[..., offset : offset + 2] = halves
    if type_name == "MXFP4":
        blocks[..., 0] = 120 + blocks[..., 0] % 3
    return blocks.reshape(rows, -1)
