"""From a folder to a compiled model: properties, context, and everything that can be wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import openvino as ov
import pytest

from ovgen.engine_config import EngineConfig
from ovgen.errors import ConfigError, DeviceError, ModelFormatError, ModelNotFoundError
from ovgen.model import compile_properties, loader
from ovgen.model.device_errors import first_line
from ovgen.model.loader import load_model
from ovgen.model.paged_model import load_paged_model

LLAMA = Path(__file__).parents[1] / "fixtures" / "tiny" / "llama"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny llama, to be broken."""
    return Path(shutil.copytree(LLAMA, tmp_path / "llama"))


def load(folder: Path, **options):
    return load_model(folder, EngineConfig(**options), None)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_what_the_config_says():
    loaded = load(LLAMA)
    assert (loaded.context_length, loaded.vocab_size) == (256, 320)
    assert len(loaded.weights) == 1


def properties_of(compiled: ov.CompiledModel) -> tuple[object, object, object]:
    return (
        compiled.get_property("INFERENCE_PRECISION_HINT"),
        compiled.get_property("KV_CACHE_PRECISION"),
        compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE"),
    )


def test_exact_is_float32_throughout():
    assert properties_of(load(LLAMA, precision="exact").compiled) == (ov.Type.f32, ov.Type.f32, 0)


@pytest.fixture
def plain_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a CPU without AMX."""
    monkeypatch.setattr(compile_properties.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(compile_properties, "has_amx", lambda core: False)


@pytest.mark.usefixtures("plain_x86")
def test_default_on_x86():
    precision, _, group = properties_of(load(LLAMA).compiled)
    assert (precision, group) == (ov.Type.f32, 64)


@pytest.mark.usefixtures("plain_x86")
@pytest.mark.parametrize(
    ("has_integers", "has_bf16", "expected"),
    [(True, True, "bf16"), (True, False, "f32"), (False, True, "f32")],
)
def test_bfloat16_is_for_quantized_weights_on_processors_that_multiply_it(
    monkeypatch: pytest.MonkeyPatch, has_integers: bool, has_bf16: bool, expected: str
):
    monkeypatch.setattr(compile_properties, "has_integer_weights", lambda model: has_integers)
    monkeypatch.setattr(compile_properties, "has_bf16", lambda core: has_bf16)
    loaded = load(LLAMA)
    precision, _, group = properties_of(loaded.compiled)
    assert (precision.get_type_name(), group) == (expected, 64)
    assert (loaded.head is not None) == (expected == "bf16")


@pytest.mark.parametrize("is_paged", [False, True])
def test_in_bfloat16_the_head_stays_in_float32(is_paged: bool):
    config = EngineConfig(properties={"INFERENCE_PRECISION_HINT": "bf16"})
    loaded = load_paged_model(LLAMA, config) if is_paged else load_model(LLAMA, config, None)
    assert loaded.head is not None
    assert properties_of(loaded.compiled)[0] == ov.Type.bf16
    assert properties_of(loaded.head)[0] == ov.Type.f32
    assert loaded.vocab_size == 320


@pytest.mark.parametrize(("asked", "found"), [(None, ov.Type.f16), ("u8", ov.Type.u8)])
def test_in_bfloat16_a_stateful_cache_is_in_half_precision(
    tmp_path: Path, asked: str | None, found: ov.Type
):
    folder = Path(shutil.copytree(LLAMA, tmp_path / "llama"))
    xml = folder / "openvino_model.xml"
    graph = re.sub("<runtime_options>.*</runtime_options>", "", xml.read_text(), flags=re.DOTALL)
    xml.write_text(graph)
    properties = {"INFERENCE_PRECISION_HINT": "bf16"}
    loaded = load(folder, properties=properties, kv_cache_precision=asked)
    assert properties_of(loaded.compiled)[1] == found
    plain = load(folder, properties={"INFERENCE_PRECISION_HINT": "f32"})
    assert properties_of(plain.compiled)[1] == ov.Type.u8


@pytest.mark.usefixtures("plain_x86")
def test_with_amx_the_default_is_the_devices_own(monkeypatch: pytest.MonkeyPatch):
    """Which is bfloat16."""
    monkeypatch.setattr(compile_properties, "has_amx", lambda core: True)
    plain = ov.Core().compile_model(LLAMA / "openvino_model.xml", "CPU")
    assert properties_of(load(LLAMA).compiled) == properties_of(plain)


@pytest.mark.usefixtures("plain_x86")
@pytest.mark.parametrize(("weights", "group"), [(None, 64), (32, 32), (64, 64), (128, 64)])
def test_the_quantization_group_does_not_exceed_the_weights(
    monkeypatch: pytest.MonkeyPatch, weights: int | None, group: int
):
    monkeypatch.setattr(compile_properties, "weight_group", lambda model: weights)
    assert properties_of(load(LLAMA).compiled)[2] == group


def test_default_elsewhere_is_the_devices_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compile_properties.platform, "machine", lambda: "aarch64")
    plain = ov.Core().compile_model(LLAMA / "openvino_model.xml", "CPU")
    assert properties_of(load(LLAMA).compiled) == properties_of(plain)


def test_the_callers_properties_win():
    properties = {"INFERENCE_NUM_THREADS": 1, "KV_CACHE_PRECISION": "f16"}
    compiled = load(LLAMA, properties=properties).compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("KV_CACHE_PRECISION") == ov.Type.f16


def test_a_cache_of_the_callers_own_is_the_only_one(tmp_path: Path):
    cache = loader.CompiledCache(tmp_path)
    for properties in ({"CACHE_DIR": ""}, {"CACHE_DIR": str(tmp_path / "own")}):
        for _ in range(2):
            loaded = load_model(LLAMA, EngineConfig(properties=properties), cache)
            assert len(loaded.weights) == 1, "the file's own"
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_exact_and_a_property_that_contradicts_it():
    with pytest.raises(ConfigError, match="KV_CACHE_PRECISION"):
        load(LLAMA, precision="exact", properties={"KV_CACHE_PRECISION": "u8"})


@pytest.mark.parametrize("name", ["openvino_model.xml", "openvino_model.bin"])
def test_a_missing_file(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(ModelNotFoundError, match=name):
        load(folder)


@pytest.mark.parametrize("name", ["openvino_model.xml", "openvino_model.bin", "config.json"])
@pytest.mark.parametrize("damage", [cut_in_half, lambda path: path.write_bytes(b"")])
def test_a_damaged_file(folder: Path, name: str, damage):
    damage(folder / name)
    with pytest.raises(ModelFormatError, match=name.removesuffix(".bin")) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_an_unknown_device_names_those_there_are():
    with pytest.raises(DeviceError, match=r"'cpu'; available here: .*CPU"):
        load(LLAMA, device="cpu")


@pytest.mark.parametrize(
    "properties", [{"NO_SUCH_PROPERTY": 1}, {"INFERENCE_PRECISION_HINT": "f99"}]
)
def test_properties_that_the_device_refuses(properties: dict[str, object]):
    with pytest.raises(DeviceError, match=next(iter(properties))) as caught:
        load(LLAMA, properties=properties)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["AUTO", "AUTO:CPU", "HETERO:CPU", "BATCH:CPU"])
def test_virtual_devices(device: str, tmp_path: Path):
    cache = loader.CompiledCache(tmp_path)
    for _ in range(2):
        assert load_model(LLAMA, EngineConfig(device=device), cache).vocab_size == 320


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 77}, 77),
        ({"n_positions": 78}, 78),
        ({"max_seq_len": 79}, 79),
        ({"max_position_embeddings": None, "seq_length": 80}, 80),
        ({"text_config": {"max_position_embeddings": 81}}, 81),
        ({"text_config": None}, 1 << 20),
        ({}, 1 << 20),
    ],
)
def test_context_length(folder: Path, config: dict[str, object], length: int):
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder).context_length == length


def test_no_config_at_all(folder: Path):
    (folder / "config.json").unlink()
    assert load(folder).context_length == 1 << 20


@pytest.mark.parametrize("value", [0, -1, "many", True, 2048.5, [1]])
def test_an_impossible_context_length(folder: Path, value: object):
    (folder / "config.json").write_text(json.dumps({"n_positions": value}))
    with pytest.raises(ModelFormatError, match="n_positions"):
        load(folder)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("Exception from a.cpp:1:\nCheck 'x' failed at b.cpp:2:\nIt is broken\n\n", "It is broken"),
        ("Exception from a.cpp:1:\n", "Exception from a.cpp:1:"),
        ("", "unknown error"),
    ],
)
def test_the_line_that_says_what_is_wrong(message: str, line: str):
    assert first_line(RuntimeError(message)) == line
