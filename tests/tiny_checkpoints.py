"""Tiny Hugging Face checkpoints of every architecture, made from a seed: nothing but numpy.

tests/oracles/tiny_checkpoint_logits.py records what transformers computes for them.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from small_tokenizers import byte_level

DATA = Path(__file__).parent / "data" / "tiny_checkpoints.json"

_SPLITMIX_STEP = 0x9E3779B97F4A7C15
_SAFETENSORS_TYPES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.uint8): "U8",
    np.dtype(np.bool_): "BOOL",
}


@dataclass(frozen=True)
class Record:
    """A checkpoint, and what transformers computes for it.

    Attributes:
        config: the content of config.json.
        tensors: shapes by the names of the file.
        seed: of the weights.
        prompts: lists of token ids.
        tokens: the greedy tokens after each prompt.
    """

    config: dict[str, Any]
    tensors: dict[str, list[int]]
    seed: int
    prompts: list[list[int]]
    tokens: list[list[int]]


@functools.cache
def records() -> dict[str, Record]:
    """All checkpoints by name."""
    fields = Record.__dataclass_fields__
    return {
        name: Record(**{field: values[field] for field in fields})
        for name, values in json.loads(DATA.read_text()).items()
    }


def logits(name: str) -> tuple[list[np.ndarray], np.ndarray]:
    """transformers' logits: of the last position of each prompt [vocab], and of all positions of
    the first prompt [tokens, vocab]."""
    with np.load(DATA.with_suffix(".npz")) as arrays:
        rows = arrays[name]
    record = records()[name]
    first = len(record.prompts[0])
    return [rows[first - 1], *rows[first:]], rows[:first]


def random_weights(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """The float32 values of a tensor: the same on every machine, and exact in BF16 and F16 too.

    They are sized so that attention attends to some tokens more than to others and the context
    decides the next token: matrices double the length of a vector, norms are about 1.
    """
    noise = _noise(f"{seed}/{name}", int(np.prod(shape))).reshape(shape)  # -127..127
    if name.endswith("_scales"):  # MXFP4: exponents of two, 127 more than they are
        return (123 + noise % 2).astype(np.uint8)
    if name.endswith(".attention.bias") and len(shape) == 4:  # a mask
        return noise > 0
    if name.endswith("_blocks"):
        return (noise & 0xFF).astype(np.uint8)
    if len(shape) == 1 or name.endswith("_bias"):
        is_scale = "norm" in name or "ln_" in name
        is_scale = is_scale and name.endswith("weight")
        return np.ldexp((noise // 4 + (128 if is_scale else 0)).astype(np.float32), -7)
    exponent = -10 if _is_table(name) else -8 if _is_head(name) else -5 - _log2_root(shape[-1])
    return np.ldexp(noise.astype(np.float32), exponent)


def _noise(key: str, count: int) -> np.ndarray:
    """Integers -127..127, by SplitMix64 (Steele et al., 2014) from a hash of the key."""
    start = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    state = np.uint64(start) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_SPLITMIX_STEP)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return (state % np.uint64(255)).astype(np.int64) - 127


def _is_table(name: str) -> bool:
    tables = ("embed_tokens", "wte", "wpe", "embed_in", "embed_positions", "word_embeddings")
    return any(f"{table}." in name for table in tables)


def _is_head(name: str) -> bool:
    return "lm_head." in name or "embed_out." in name


def _log2_root(size: int) -> int:
    """The logarithm of the square root of a row's length, rounded to an integer."""
    return int(size).bit_length() // 2


def tensor_values(record: Record) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint."""
    return {
        name: random_weights(name, shape, record.seed) for name, shape in record.tensors.items()
    }


def write_checkpoint(folder: Path, record: Record, dtype: str = "F32", num_shards: int = 1) -> Path:
    """Write config.json, the weights and a tokenizer as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", record.config)
    ids = {key: record.config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", ids)
    tensors = tensor_values(record)
    if num_shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
    else:
        _write_shards(folder, tensors, dtype, num_shards)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of 332 tokens, <s> 0, </s> 1 and <unk> 2."""
    byte_level().save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer_class = {"tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", roles | tokenizer_class)


def _write_shards(
    folder: Path, tensors: Mapping[str, np.ndarray], dtype: str, num_shards: int
) -> None:
    weight_map = {}
    names = list(tensors)
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::num_shards]}
        weight_map |= dict.fromkeys(part, file)
        write_safetensors(folder / file, part, dtype)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str = "F32") -> None:
    """Write a safetensors file, its floats as F32, F16 or BF16: header length, JSON, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data, offset = [], 0
    for name, values in tensors.items():
        kind = _SAFETENSORS_TYPES[values.dtype]
        kind, stored = _stored(values, dtype) if kind == "F32" else (kind, values)
        stop = offset + stored.nbytes
        entry = {"dtype": kind, "shape": list(values.shape), "data_offsets": [offset, stop]}
        header[name], offset = entry, stop
        data.append(stored.tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))


def _stored(values: np.ndarray, dtype: str) -> tuple[str, np.ndarray]:
    if dtype == "BF16":
        return dtype, (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return dtype, values.astype({"F32": np.float32, "F16": np.float16}[dtype])


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
