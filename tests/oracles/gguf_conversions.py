"""Records in tests/data/gguf_conversions.json what llama.cpp's converter makes of tiny checkpoints.

    python tests/oracles/gguf_conversions.py LLAMA_CPP

with LLAMA_CPP a checkout of llama.cpp, and torch, transformers and safetensors installed. Of each
file the record has the metadata and, for each tensor, the checkpoint's tensor that it is made of
and how its values were changed; not the values themselves.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))
sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/gguf-py"]

import conversion.base  # noqa: E402
import gguf  # noqa: E402
import tiny_checkpoints  # noqa: E402

NAMES = (
    "llama", "llama_bias", "llama_llama3_rope", "llama_yarn", "llama_linear_rope", "mistral",
    "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "phi3_longrope", "olmo2", "granite",
    "smollm3", "stablelm", "cohere", "cohere2", "glm4", "starcoder2", "phi", "mixtral",
    "qwen3_moe", "gpt_oss", "gpt2", "gpt_neox", "falcon", "falcon_new", "bloom", "mpt",
)  # fmt: skip
# What the converter asks for, where transformers 5 has another name or a default.
FIELDS: dict[str, dict[str, Any]] = {
    "cohere2": {"rotary_pct": 2.0},  # of hidden_size / heads, half of what this one has
    "falcon": {"num_kv_heads": 1},
    "gpt_neox": {"rotary_pct": 0.25},
}
LEFT_OUT_TENSORS = {"gpt2": ["h.0.attn.bias", "h.1.attn.bias"]}  # masks, which it does not take
LEFT_OUT = ("general.", "tokenizer.")  # of the metadata, but for the architecture


def convert(folder: Path, target: Path, fields: dict[str, Any]) -> None:
    """Run the converter, without the tokenizer, which has to be one that it knows."""
    hparams = conversion.base.ModelBase.load_hparams(folder, False) | fields
    architecture = conversion.base.get_model_architecture(hparams, conversion.base.ModelType.TEXT)
    base = conversion.get_model_class(architecture)
    kind = type(
        base.__name__, (base,), {"set_vocab": lambda self: None, "model_arch": base.model_arch}
    )
    kind(folder, gguf.LlamaFileType.ALL_F32, target, hparams=hparams).write()


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Each head's halves interleaved."""
    return (
        values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
        .swapaxes(1, 2)
        .reshape(values.shape)
    )


def parted(values: np.ndarray, groups: int, repeats: int) -> np.ndarray:
    """All queries, then all keys, then all values, which came by groups."""
    grouped = values.reshape(groups, repeats + 2, -1, *values.shape[1:])
    parts = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
    return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])


def changes(tensor: np.ndarray, heads: list[int]) -> dict[str, np.ndarray]:
    """What the converter may have made of a tensor, by name."""
    found = {"same": tensor, "plus 1": tensor + np.float32(1)}
    for count in heads:
        if len(tensor) % (2 * count) == 0:
            found[f"interleaved {count}"] = permuted(tensor, count)
        repeats = heads[0] // count
        if len(tensor) % (count * (repeats + 2)) == 0:
            found[f"parted {count} {repeats}"] = parted(tensor, count, repeats)
    if tensor.ndim > 1:
        turned = tensor.swapaxes(-1, -2)
        found |= {"even": tensor[..., ::2], "odd": tensor[..., 1::2], "transposed": turned}
        found |= {"even transposed": turned[..., ::2, :], "odd transposed": turned[..., 1::2, :]}
    return found


def origin(values: np.ndarray, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> list[Any]:
    """The checkpoint's tensor and the change that give these values."""
    all_heads = config.get("num_attention_heads") or config.get("n_head") or config["n_heads"]
    kv_heads = config.get("num_key_value_heads") or config.get("num_kv_heads") or all_heads
    heads = [all_heads, 1 if config.get("multi_query") else kv_heads]
    for name, tensor in tensors.items():
        for change, changed in changes(tensor, heads).items():
            if np.array_equal(changed, values):
                return [name, change]
    if values.ndim == 3:
        return [[origin(expert, tensors, config)[0] for expert in values], "stacked"]
    return [None, values.astype(float).reshape(-1).tolist()]


def record(name: str) -> dict[str, Any]:
    """The metadata, and the tensors with their origins."""
    checkpoint = tiny_checkpoints.records()[name]
    if name in LEFT_OUT_TENSORS:
        kept = {k: v for k, v in checkpoint.tensors.items() if k not in LEFT_OUT_TENSORS[name]}
        checkpoint = dataclasses.replace(checkpoint, tensors=kept)
    tensors = tiny_checkpoints.tensor_values(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        source = tiny_checkpoints.write_checkpoint(Path(folder) / "hf", checkpoint)
        convert(source, path, FIELDS.get(name, {}))
        reader = gguf.GGUFReader(path)
        metadata = {
            key: field.contents()
            for key, field in reader.fields.items()
            if key == "general.architecture" or not key.startswith(("GGUF.", *LEFT_OUT))
        }
        types = {key: [kind.name for kind in reader.fields[key].types] for key in metadata}
        found = {
            tensor.name: origin(np.array(tensor.data, np.float32), tensors, checkpoint.config)
            for tensor in reader.tensors
        }
    return {"metadata": metadata, "types": types, "tensors": found}


def main() -> None:
    """Write the records."""
    known = [name for name in NAMES if name in tiny_checkpoints.records()]
    records = {name: record(name) for name in known}
    path = TESTS / "data" / "gguf_conversions.json"
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in records.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
