"""When a profile is used, and what wins over it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import openvino as ov
import pytest

from ovgen.engine_config import EngineConfig
from ovgen.errors import ConfigError, ModelFormatError
from ovgen.model.compiled_cache import CompiledCache
from ovgen.model.device_facts import identity
from ovgen.model.loader import load_model
from ovgen.model.profile import model_digest
from ovgen.model.profile_file import PROFILE_NAME, Profile, store_profile

LLAMA = Path(__file__).parents[1] / "fixtures" / "tiny" / "llama"
FIGURES = dict.fromkeys(("ttft", "tpot", "throughput", "kl", "ratio", "max_kl"), 1.0)
TUNED = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32",
         "KV_CACHE_PRECISION": "bf16", "INFERENCE_NUM_THREADS": "1"}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LLAMA, tmp_path / "llama"))


def tune(folder: Path, goal: str = "latency", properties=TUNED, **changes) -> None:
    machine, model = identity(folder, "CPU")
    store_profile(folder, Profile(goal, replace(machine, **changes), model, properties, FIGURES))


def kv_precision(folder: Path, cache: CompiledCache | None = None, **options) -> str:
    compiled = load_model(folder, EngineConfig(**options), cache).compiled
    return compiled.get_property("KV_CACHE_PRECISION").get_type_name()


def test_a_profile_is_used(folder: Path):
    before = kv_precision(folder)
    tune(folder)
    compiled = load_model(folder, EngineConfig(), None).compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 32
    assert compiled.get_property("KV_CACHE_PRECISION") == ov.Type.bf16
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert kv_precision(folder, profile="none") == before != "bf16"
    assert kv_precision(folder, precision="exact") == "f32"


def test_explicit_properties_win(folder: Path):
    tune(folder)
    compiled = load_model(
        folder, EngineConfig(properties={"KV_CACHE_PRECISION": "f32"}), None
    ).compiled
    assert compiled.get_property("KV_CACHE_PRECISION") == ov.Type.f32
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_the_group_belongs_to_the_profiles_own_precision(folder: Path):
    plain = load_model(
        folder, EngineConfig(properties={"INFERENCE_PRECISION_HINT": "f32"}), None
    ).compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")
    tune(folder, properties={**TUNED, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"})
    compiled = load_model(
        folder, EngineConfig(properties={"INFERENCE_PRECISION_HINT": "f32"}), None
    ).compiled
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == plain != 128


def test_goals(folder: Path):
    tune(folder)
    tune(folder, "throughput", {"KV_CACHE_PRECISION": "f32"})
    assert kv_precision(folder) == "f32"  # tuned last
    assert kv_precision(folder, profile="latency") == "bf16"
    assert kv_precision(folder, profile="throughput") == "f32"
    tune(folder)
    assert kv_precision(folder) == "bf16"


@pytest.mark.parametrize("change", [{"device_name": "B"}, {"num_cpus": 77}, {"openvino": "1"}])
def test_another_machines_profile_is_ignored(folder: Path, change):
    before = kv_precision(folder)
    tune(folder, **change)
    assert kv_precision(folder) == before
    with pytest.raises(ConfigError, match="ovgen tune --for latency"):
        kv_precision(folder, profile="latency")


def test_it_is_the_last_that_fits(folder: Path):
    tune(folder)
    tune(folder, "throughput", {}, device_name="B")
    assert kv_precision(folder) == "bf16"


@pytest.mark.parametrize("name", ["openvino_model.xml", "openvino_model.bin"])
def test_other_model_files(folder: Path, name: str):
    tune(folder)
    path = folder / name
    path.write_bytes(path.read_bytes() + b"\n")
    assert kv_precision(folder) != "bf16"


def test_a_copy_keeps_its_profile(folder: Path, tmp_path: Path):
    tune(folder)
    copy = Path(shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy))
    assert kv_precision(copy) == "bf16"


@pytest.mark.parametrize("size", [0, 1, 4096, 5000, 1 << 20])
def test_the_digest_sees_changed_weights(tmp_path: Path, size: int):
    (tmp_path / "openvino_model.xml").write_bytes(b"xml")
    path = tmp_path / "openvino_model.bin"
    digests = set()
    for content in (bytes(size), b"\1" * size):
        path.write_bytes(content)
        digests.add(model_digest(tmp_path))
    assert len(digests) == min(2, size + 1)


def test_a_goal_that_was_not_tuned(folder: Path):
    tune(folder)
    with pytest.raises(ConfigError, match="throughput"):
        kv_precision(folder, profile="throughput")


def test_a_damaged_profile(folder: Path):
    (folder / PROFILE_NAME).write_text("{")
    with pytest.raises(ModelFormatError, match=r"--reset.*profile='none'"):
        kv_precision(folder)
    assert kv_precision(folder, profile="none") not in ("bf16", "f32")
    assert kv_precision(folder, precision="exact") == "f32"


def test_profiles_have_compiled_models_of_their_own(folder: Path, tmp_path: Path):
    cache = CompiledCache(tmp_path / "compiled")
    before = kv_precision(folder, cache)
    tune(folder)
    assert [kv_precision(folder, cache) for _ in range(2)] == ["bf16", "bf16"]
    assert kv_precision(folder, cache, profile="none") == before
