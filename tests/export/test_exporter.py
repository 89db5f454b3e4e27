"""Exported graphs against transformers on the same dequantized weights."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import tiny_checkpoints
from tiny_gguf import PROMPT, VARIANTS, VOCAB, write_tiny_gguf

from ovgen.errors import (
    ConfigError,
    ModelError,
    ModelFormatError,
    ModelNotFoundError,
    StorageError,
    UnsupportedModelError,
)
from ovgen.export.architectures import build_model
from ovgen.export.exporter import export_model, new_folder, open_checkpoint
from ovgen.export.gguf import open_gguf
from ovgen.export.weight_reader import WeightReader
from ovgen.export.weight_store import WeightStore

REFERENCE = Path(__file__).parents[1] / "data" / "tiny_gguf_logits.npz"
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


def compiled_logits(model: ov.Model, chunks: list[int]) -> np.ndarray:
    """Logits [tokens, vocab] of the prompt, computed in chunks of these lengths."""
    request = ov.Core().compile_model(model, "CPU", EXACT).create_infer_request()
    logits, past = [], 0
    for length in chunks:
        total = past + length
        feed = {
            "input_ids": np.array([PROMPT[past:total]], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(past, total, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        logits.append(request.infer(feed, share_inputs=True)["logits"][0].copy())
        past = total
    return np.concatenate(logits)


def build(source: Path, weights: str) -> ov.Model:
    """The graph of a checkpoint, as it is saved."""
    folder = Path(tempfile.mkdtemp(dir=source.parent))
    with open_checkpoint(source) as checkpoint, WeightStore(folder) as store:
        store.save(build_model(checkpoint, WeightReader(checkpoint, weights, store)))
    return ov.Core().read_model(folder / "openvino_model.xml")


@pytest.mark.parametrize("name", VARIANTS)
def test_exact_weights_give_transformers_logits(name: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", VARIANTS[name])
    expected = np.load(REFERENCE)[name]
    model = build(path, "exact")
    np.testing.assert_allclose(compiled_logits(model, [len(PROMPT)]), expected, atol=1e-4)
    in_chunks = compiled_logits(model, [5, 1, len(PROMPT) - 6])
    np.testing.assert_allclose(in_chunks, expected, atol=1e-4)


@pytest.mark.parametrize("weights", ["auto", "int8_sym", "fp16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_other_weights_stay_close(name: str, weights: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", VARIANTS[name])
    expected = np.load(REFERENCE)[name]
    error = compiled_logits(build(path, weights), [len(PROMPT)]) - expected
    assert np.abs(error).mean() < (0.001 if weights == "fp16" else 0.02) * expected.std()


def test_big_models_keep_their_four_bit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", VARIANTS["mixed"])
    small = constants(build(path, "auto"))
    monkeypatch.setattr("ovgen.export.compression_plan.SMALL_MODEL_PARAMETERS", 0)
    model = build(path, "auto")
    big = constants(model)
    assert "i4" not in small
    assert "i4" in big
    assert sum(big.values()) < 0.7 * sum(small.values())
    error = compiled_logits(model, [len(PROMPT)]) - np.load(REFERENCE)["mixed"]
    assert np.abs(error).mean() < 0.01


def constants(model: ov.Model) -> dict[str, int]:
    """Bytes of constants by type."""
    sizes: dict[str, int] = {}
    for node in model.get_ops():
        if node.get_type_name() == "Constant":
            name = node.get_element_type().get_type_name()
            sizes[name] = sizes.get(name, 0) + node.get_byte_size()
    return sizes


def test_projections_share_a_matmul(tmp_path: Path) -> None:
    def matmuls(name: str) -> int:
        path = write_tiny_gguf(tmp_path / f"{name}.gguf", VARIANTS[name])
        model = build(path, "exact")
        return sum(node.get_type_name() == "MatMul" for node in model.get_ops())

    # Per layer QKV, output, gate, up and down; the head; and the angles of RoPE.
    assert matmuls("Q8_0") == 2 * 5 + 1 + 1
    # The value projection stands alone: three for QKV instead of one, and its offsets' own.
    assert matmuls("mixed") == 2 * (3 * 2 + 1 + 3 * 2) + 2 + 1


@pytest.mark.parametrize(
    ("weights", "cache"), [("fp16", "f16"), ("exact", "f16"), ("int8_sym", "u8")]
)
def test_the_cache_is_rounded_where_weights_are(weights: str, cache: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", VARIANTS["Q4_0"])
    model = export_model(path, tmp_path / "out", weights=weights) / "openvino_model.xml"

    def precision(**properties: str) -> str:
        compiled = ov.Core().compile_model(model, "CPU", properties)
        return str(compiled.get_property("KV_CACHE_PRECISION").to_string())

    assert precision() == cache
    assert precision(KV_CACHE_PRECISION="f32") == "f32"


def test_the_folder_has_the_files_of_optimum(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", VARIANTS["Q4_0"])
    folder = export_model(path, tmp_path / "out")
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "openvino_detokenizer.bin",
        "openvino_detokenizer.xml",
        "openvino_model.bin",
        "openvino_model.xml",
        "openvino_tokenizer.bin",
        "openvino_tokenizer.xml",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["vocab_size"] == VOCAB
    assert config["eos_token_id"] == 0
    saved = ov.Core().read_model(folder / "openvino_model.xml")
    np.testing.assert_array_equal(
        compiled_logits(saved, [len(PROMPT)]), compiled_logits(build(path, "auto"), [len(PROMPT)])
    )


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", VARIANTS["Q8_0"])
    data = path.read_bytes()
    key = b"llama.feed_forward_length" + (4).to_bytes(4, "little")
    wrong = data.replace(key + (512).to_bytes(4, "little"), key + (256).to_bytes(4, "little"))
    assert wrong != data
    path.write_bytes(wrong)
    with pytest.raises(
        ModelFormatError, match=r"'model\.layers\.0\.mlp\.gate_proj\.weight' has shape"
    ):
        export_model(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_is_no_part_of_the_model_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", VARIANTS["llama3_rope"])
    path.write_bytes(path.read_bytes().replace(b"rope_freqs.weight", b"rope_frogs.weight"))
    with pytest.raises(ModelFormatError, match=r"rope_frogs\.weight"):
        export_model(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", VARIANTS["F32"])
    with open_gguf(path) as gguf:
        row = gguf.tensors["blk.1.ffn_up.weight"].data[0].tobytes()
    data = path.read_bytes()
    path.write_bytes(data.replace(row, np.full(256, np.nan, np.float32).tobytes()))
    with pytest.raises(
        ModelFormatError, match=r"layers\.1\.mlp\.up_proj\.weight' holds .* not finite"
    ):
        export_model(path, tmp_path / "out")


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", VARIANTS["Q8_0"])
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not an empty folder"):
        export_model(path, target)
    assert [file.name for file in target.iterdir()] == ["mine.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux counts it")
def test_the_peak_memory_is_bounded_by_the_output(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "big.gguf", VARIANTS["F16"], inner=98304)
    code = (
        "import sys; from ovgen.export.exporter import export_model;"
        "export_model(sys.argv[1], sys.argv[2], weights='fp16');"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "out")]
    peak = 1024 * int(subprocess.run(command, check=True, capture_output=True).stdout)
    size = sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert size > 300e6
    assert peak < size + 300e6


def test_unknown_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="int4_asym, nf4, not 'int2'"):
        export_model(tmp_path / "missing.gguf", tmp_path / "out", weights="int2")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_folder_goes_away(
    tmp_path: Path, error: type[BaseException] | BaseException
) -> None:
    expected = StorageError if isinstance(error, OSError) else KeyboardInterrupt

    def write() -> None:
        with new_folder(tmp_path / "out") as partial:
            (partial / "half").write_text("half")
            raise error

    with pytest.raises(expected):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder as transformers saves it."""
    record = tiny_checkpoints.records()["qwen2"]
    return tiny_checkpoints.write_checkpoint(tmp_path / "saved", record)


def test_a_folder_of_transformers(saved: Path, tmp_path: Path) -> None:
    (saved / "chat_template.jinja").write_text("{{ messages }}")
    (saved / "modeling_own.py").write_text("raise SystemExit('executed')")
    config = json.loads((saved / "config.json").read_text())
    more = {"auto_map": {"AutoModel": "modeling_own.Model"}}
    (saved / "config.json").write_text(json.dumps(config | more))
    lines: list[str] = []
    folder = export_model(saved, tmp_path / "out", weights="fp32", progress=lines.append)
    assert {file.name for file in folder.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "openvino_detokenizer.bin",
        "openvino_detokenizer.xml",
        "openvino_model.bin",
        "openvino_model.xml",
        "openvino_tokenizer.bin",
        "openvino_tokenizer.xml",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert json.loads((folder / "config.json").read_text()) == config
    assert lines[:2] == ["tokenizer", "weights"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("config.json", "config.json"),
        ("tokenizer.json", "tokenizer.json"),
        ("model.safetensors", "neither model.safetensors nor model.safetensors.index.json"),
    ],
)
def test_a_folder_without_what_it_takes(saved: Path, tmp_path: Path, name: str, says: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ModelError, match=says):
        export_model(saved, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model_type": "rwkv"}, UnsupportedModelError, "'rwkv' cannot be exported; supported: .*"),
        ({"model_type": "../llama"}, UnsupportedModelError, "cannot be exported"),
        ({"model_type": None}, ModelFormatError, "model_type is missing"),
        ({"model_type": 3}, ModelFormatError, "model_type is 3, expected a string"),
        ({"hidden_act": "mish"}, UnsupportedModelError, "hidden_act is 'mish'"),
        ({"hidden_size": 32}, ModelFormatError, r"'model.embed_tokens.weight' has shape"),
        ({"num_hidden_layers": 1}, ModelFormatError, r"do not belong .*model\.layers\.1"),
        ({"num_hidden_layers": 3}, ModelFormatError, r"'model\.layers\.2\..*' is missing"),
        ({"num_hidden_layers": 10**9}, ModelFormatError, "num_hidden_layers is 1000000000"),
        ({"vocab_size": -1}, ModelFormatError, "vocab_size is -1, expected"),
        ({"rms_norm_eps": "x"}, ModelFormatError, "rms_norm_eps is 'x', expected"),
    ],
)
def test_configs_that_do_not_fit(
    saved: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(error, match=says):
        export_model(saved, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        export_model(tmp_path / "missing.gguf", tmp_path / "out")
