"""GGUF files as llama.cpp's converter writes them, against the checkpoints they are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import openvino as ov
import pytest
from tiny_checkpoints import logits, records, tensor_values

from ovgen.errors import ModelFormatError, UnsupportedModelError
from ovgen.export.architectures import build_model
from ovgen.export.gguf_checkpoint import GGUFCheckpoint
from ovgen.export.weight_reader import WeightReader
from ovgen.export.weight_store import WeightStore

# What tests/oracles/gguf_conversions.py found in the converter's files.
CONVERSIONS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data" / "gguf_conversions.json").read_text()
)
# What such a file does not say: that it is mistral, and numbers that are known by the model's size.
NOT_IN_FILE = {
    "mistral": ("model_type", "sliding_window"),
    "phi": ("intermediate_size",),
    "gemma2": ("query_pre_attn_scalar",),
    "gemma3": ("query_pre_attn_scalar", "layer_types"),
    "smollm3": ("no_rope_layers",),
    "starcoder2": ("sliding_window",),
}
# A tied head, masks and what follows from the config.
NOT_CONVERTED = ("lm_head.weight", "attn.bias", "attention.bias", "masked_bias", "inv_freq")
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


def write_converted(path: Path, name: str, fuse: bool = False, **metadata: Any) -> Path:
    """The converter's file of a tiny checkpoint, some metadata changed, others (None) left out.

    ``fuse``: as it is with ``--fuse-qkv``.
    """
    conversion = CONVERSIONS[name]
    writer = gguf.GGUFWriter(path, conversion["metadata"]["general.architecture"])
    changed = {key.replace("__", "."): value for key, value in metadata.items()}
    for key, value in {**conversion["metadata"], **changed}.items():
        if key != "general.architecture" and value is not None:
            kinds = [gguf.GGUFValueType[kind] for kind in conversion["types"].get(key, ["STRING"])]
            writer.add_key_value(key, value, kinds[0], *kinds[1:])
    writer.add_token_list([f"t{number}" for number in range(records()[name].config["vocab_size"])])
    values = tensor_values(records()[name])
    converted = {
        tensor: _converted(values, origin, change)
        for tensor, (origin, change) in conversion["tensors"].items()
    }
    for tensor in list(converted) if fuse else ():
        if ".attn_q." in tensor:
            parts = [converted.pop(tensor.replace("_q.", f"_{part}.")) for part in "qkv"]
            converted[tensor.replace("_q.", "_qkv.")] = np.concatenate(parts)
    for tensor, array in converted.items():
        writer.add_tensor(tensor, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _converted(values: dict[str, np.ndarray], origin: Any, change: Any) -> np.ndarray:
    if origin is None:
        return np.array(change, np.float32)
    if change == "stacked":
        return np.stack([values[name] for name in origin])
    tensor, kinds = values[origin], change.split()
    if "transposed" in kinds:
        tensor = tensor.swapaxes(-1, -2)
    axis = tensor.ndim - (2 if "transposed" in kinds else 1)
    if kinds[0] in ("even", "odd"):
        tensor = np.take(tensor, range(kinds[0] == "odd", tensor.shape[axis], 2), axis)
    if kinds[0] == "parted":
        groups, repeats = int(kinds[1]), int(kinds[2])
        grouped = tensor.reshape(groups, repeats + 2, -1, *tensor.shape[1:])
        parts = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
        tensor = np.concatenate([part.reshape(-1, *tensor.shape[1:]) for part in parts])
    if kinds[0] == "interleaved":
        halves = tensor.reshape(int(kinds[1]), 2, -1, *tensor.shape[1:])
        tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
    return np.ascontiguousarray(tensor + np.float32(1) if change == "plus 1" else tensor)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_tensors_are_transformers(name: str, tmp_path: Path):
    wanted = tensor_values(records()[name])
    if name == "gpt_oss":  # comes as its packed form does, which is transposed
        wanted = {_packed(key): _transposed(key, value) for key, value in wanted.items()}
    with GGUFCheckpoint(write_converted(tmp_path / "model.gguf", name)) as checkpoint:
        found_names = {name.removeprefix("transformer.") for name in checkpoint.tensors}
        names = {name.removeprefix("transformer.") for name in wanted}
        assert found_names <= names
        assert all(name.endswith(NOT_CONVERTED) for name in names - found_names)
        for tensor_name, tensor in checkpoint.tensors.items():
            key = tensor_name if tensor_name in wanted else tensor_name.split(".", 1)[1]
            expected = wanted[key]
            assert tensor.name == tensor_name
            assert tensor.shape == expected.shape
            found = tensor.values(slice(None))
            np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("name", ["llama_bias", "qwen2", "phi", "gpt_oss"])
def test_projections_that_are_one_tensor(name: str, tmp_path: Path):
    apart = write_converted(tmp_path / "apart.gguf", name)
    joined = write_converted(tmp_path / "joined.gguf", name, fuse=True)
    with GGUFCheckpoint(apart) as wanted, GGUFCheckpoint(joined) as found:
        assert len(found.gguf.tensors) < len(wanted.gguf.tensors)
        assert set(found.tensors) == set(wanted.tensors)
        for key, tensor in wanted.tensors.items():
            assert found.tensors[key].shape == tensor.shape
            values = found.tensors[key].values(slice(None))
            np.testing.assert_array_equal(values, tensor.values(slice(None)))


def _packed(name: str) -> str:
    return f"{name}.weight" if name.endswith(("gate_up_proj", "experts.down_proj")) else name


def _transposed(name: str, values: np.ndarray) -> np.ndarray:
    return values if _packed(name) == name else values.swapaxes(-1, -2)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_the_config_names_transformers_class(name: str, tmp_path: Path):
    config, wanted = {}, records()[name].config
    with GGUFCheckpoint(write_converted(tmp_path / "model.gguf", name)) as checkpoint:
        config = checkpoint.config
    if name == "mistral":
        wanted = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    if name == "mpt":  # transformers renamed its class
        wanted = wanted | {"architectures": ["MptForCausalLM"]}
    assert config["model_type"] == wanted["model_type"]
    assert config["architectures"] == wanted["architectures"]


@pytest.mark.parametrize("name", CONVERSIONS)
def test_logits_are_transformers(name: str, tmp_path: Path):
    path = write_converted(tmp_path / "model.gguf", name)
    with GGUFCheckpoint(path) as checkpoint, WeightStore(tmp_path) as store:
        known = {key: records()[name].config[key] for key in NOT_IN_FILE.get(name, ())}
        checkpoint.config = {**checkpoint.config, **known}
        store.save(build_model(checkpoint, WeightReader(checkpoint, "exact", store)))
    request = ov.Core().compile_model(tmp_path / "openvino_model.xml", "CPU", EXACT)
    request = request.create_infer_request()
    last, _ = logits(name)
    for prompt, wanted in zip(records()[name].prompts, last, strict=True):
        request.reset_state()
        feed = {
            "input_ids": np.array([prompt]),
            "attention_mask": np.ones((1, len(prompt)), np.int64),
            "position_ids": np.arange(len(prompt))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        found = request.infer(feed)["logits"][0, -1]
        np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


def test_quantized_rows_keep_their_grid(tmp_path: Path):
    from tiny_gguf import HEAD_DIM, HEADS, VARIANTS, write_tiny_gguf

    path = write_tiny_gguf(tmp_path / "tiny.gguf", VARIANTS["Q4_1"])
    with GGUFCheckpoint(path) as checkpoint:
        tensor = checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"]
        assert tensor.dtype == "Q4_1"
        assert tensor.grid is not None
        assert (tensor.grid.bits, tensor.grid.group, tensor.grid.has_offsets) == (4, 32, True)
        (stored,) = (t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.attn_q.weight")
        rows = gguf.dequantize(stored.data, stored.tensor_type)
        wanted = rows.reshape(HEADS, HEAD_DIM // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)
        np.testing.assert_array_equal(tensor.values(slice(3, 70)), wanted[3:70])
        codes = tensor.codes(slice(3, 70))
        assert codes.offsets is not None
        grouped = codes.codes.reshape(67, -1, 32).astype(np.float32)
        values = grouped * codes.scales[..., None] + codes.offsets[..., None]
        np.testing.assert_array_equal(values.reshape(67, -1), wanted[3:70])


@pytest.mark.parametrize(
    ("name", "metadata", "says"),
    [
        ("llama", {"llama__rope__scaling__type": "su"}, "scaling.type is 'su'; supported: none"),
        ("llama", {"llama__attention__value_length": 8}, "value_length is 8; supported: 16"),
    ],
)
def test_variants_are_refused(name: str, metadata: dict[str, Any], says: str, tmp_path: Path):
    path = write_converted(tmp_path / "model.gguf", name, **metadata)
    with pytest.raises(UnsupportedModelError, match=says):
        GGUFCheckpoint(path)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"llama__block_count": None}, "no 'llama.block_count'"),
        ({"llama__block_count": 0}, "'llama.block_count' is 0, the allowed range is 1"),
        ({"llama__embedding_length": 1 << 30}, "the allowed range is 1"),
        ({"llama__attention__head_count": 65}, "head_count is 65, more than embedding_length, 64"),
        ({"llama__attention__head_count_kv": 3}, "expected a multiple of num_key_value_heads, 3"),
    ],
)
def test_absurd_metadata(metadata: dict[str, Any], says: str, tmp_path: Path):
    path = write_converted(tmp_path / "model.gguf", "llama", **metadata)
    with (
        pytest.raises(ModelFormatError, match=says),
        GGUFCheckpoint(path) as checkpoint,
        WeightStore(tmp_path) as store,
    ):
        build_model(checkpoint, WeightReader(checkpoint, "exact", store))


def test_an_unknown_architecture_gives_the_list(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "rwkv7")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match=r"'rwkv7' cannot be exported; .*llama"):
        GGUFCheckpoint(tmp_path / "model.gguf")
