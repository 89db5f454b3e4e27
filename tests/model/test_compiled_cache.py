"""The cache of compiled models: when it hits, when it does not, and what it leaves on disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from unittest.mock import patch

import openvino as ov
import pytest

from ovgen.engine_config import EngineConfig
from ovgen.model import compiled_cache
from ovgen.model.compiled_cache import CompiledCache
from ovgen.model.loader import load_model

LLAMA = Path(__file__).parents[1] / "fixtures" / "tiny" / "llama"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LLAMA, tmp_path / "llama"))


@pytest.fixture
def cache(tmp_path: Path) -> CompiledCache:
    return CompiledCache(tmp_path / "compiled")


def is_hit(folder: Path, cache: CompiledCache, **options) -> bool:
    found = []

    def load(*arguments):
        found.append(CompiledCache.load(cache, *arguments))
        return found[0]

    with patch.object(cache, "load", load):
        load_model(folder, EngineConfig(**options), cache)
    return found != [None] and found != []


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "compiled").iterdir())


def test_the_second_load_hits(folder: Path, cache: CompiledCache, tmp_path: Path):
    assert not is_hit(folder, cache)
    [file] = files(tmp_path)
    assert is_hit(folder, cache)
    assert files(tmp_path) == [file]


BFLOAT16 = {"properties": {"INFERENCE_PRECISION_HINT": "bf16"}}


def test_a_body_and_its_head_are_two_files(folder: Path, cache: CompiledCache, tmp_path: Path):
    first = load_model(folder, EngineConfig(**BFLOAT16), cache)
    assert len(files(tmp_path)) == 2
    second = load_model(folder, EngineConfig(**BFLOAT16), cache)
    assert (len(first.weights), len(second.weights)) == (1, 2)
    for before, after in ((first.compiled, second.compiled), (first.head, second.head)):
        assert before is not None
        assert after is not None
        for name in ("INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE"):
            assert after.get_property(name) == before.get_property(name)


@pytest.mark.parametrize("number", [0, 1])
def test_without_one_of_its_parts_a_model_is_compiled_anew(
    folder: Path, cache: CompiledCache, tmp_path: Path, number: int
):
    is_hit(folder, cache, **BFLOAT16)
    files(tmp_path)[number].unlink()
    assert not is_hit(folder, cache, **BFLOAT16)
    assert is_hit(folder, cache, **BFLOAT16)
    assert len(files(tmp_path)) == 2


def test_a_hit_does_not_read_the_ir(
    folder: Path, cache: CompiledCache, monkeypatch: pytest.MonkeyPatch
):
    is_hit(folder, cache)
    monkeypatch.setattr(ov.Core, "read_model", lambda *_: pytest.fail("the IR was read"))
    assert is_hit(folder, cache)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "exact"},
        {"properties": {"INFERENCE_NUM_THREADS": 1}},
        {"device": "HETERO:CPU"},
    ],
)
def test_other_options_are_another_entry(folder: Path, cache: CompiledCache, options):
    is_hit(folder, cache)
    assert not is_hit(folder, cache, **options)
    assert is_hit(folder, cache)


def test_a_cached_model_has_the_same_properties(folder: Path, cache: CompiledCache):
    options = EngineConfig(precision="exact", properties={"INFERENCE_NUM_THREADS": 1})
    first, second = (load_model(folder, options, cache).compiled for _ in range(2))
    for name in (
        "INFERENCE_PRECISION_HINT",
        "KV_CACHE_PRECISION",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE",
        "INFERENCE_NUM_THREADS",
    ):
        assert second.get_property(name) == first.get_property(name)


def test_another_openvino(folder: Path, cache: CompiledCache, monkeypatch: pytest.MonkeyPatch):
    is_hit(folder, cache)
    monkeypatch.setattr(compiled_cache.ov, "get_version", lambda: "2099.1")
    assert not is_hit(folder, cache)


def test_a_changed_model_is_compiled_anew_and_the_old_entry_goes(
    folder: Path, cache: CompiledCache, tmp_path: Path
):
    is_hit(folder, cache)
    is_hit(folder, cache, precision="exact")
    before = files(tmp_path)
    assert len(before) == 2
    os.utime(folder / "openvino_model.bin", ns=(0, 0))
    assert not is_hit(folder, cache)
    [after] = files(tmp_path)
    assert after not in before


def test_models_do_not_drop_each_others_entries(folder: Path, cache: CompiledCache, tmp_path: Path):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    assert not is_hit(folder, cache)
    assert not is_hit(other, cache)
    assert is_hit(folder, cache)
    assert is_hit(other, cache)


def test_what_was_long_unused_goes_when_another_is_stored(
    folder: Path, cache: CompiledCache, tmp_path: Path
):
    is_hit(folder, cache)
    is_hit(folder, cache, precision="exact")
    for file in files(tmp_path):
        os.utime(file, (0, 0))
    [kept] = [file for file in files(tmp_path) if is_hit(folder, cache) and file.stat().st_mtime]
    other = Path(shutil.copytree(LLAMA, tmp_path / "other"))
    assert not is_hit(other, cache)
    assert kept in files(tmp_path)
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[:4096],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"x" * len(data),
        lambda data: b"[]".ljust(4096) + data[4096:],
        lambda data: data.replace(b'"properties"', b'"propertiez"', 1),
        lambda data: data[:4096] + b"\0" * (len(data) - 4096),
    ],
)
def test_a_damaged_file_is_written_anew(folder: Path, cache: CompiledCache, tmp_path: Path, damage):
    is_hit(folder, cache)
    [file] = files(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    assert not is_hit(folder, cache)
    assert is_hit(folder, cache)
    assert files(tmp_path) == [file]


def test_a_folder_that_cannot_be_made_only_costs_the_compilation(folder: Path, tmp_path: Path):
    (tmp_path / "compiled").write_text("a file")
    cache = CompiledCache(tmp_path / "compiled")
    assert not is_hit(folder, cache)
    assert not is_hit(folder, cache)


def test_a_full_disk_leaves_nothing(
    folder: Path, cache: CompiledCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    assert not is_hit(folder, cache)
    assert files(tmp_path) == []


def test_an_interrupted_write_leaves_nothing(
    folder: Path, cache: CompiledCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        is_hit(folder, cache)
    assert files(tmp_path) == []


def test_the_file_may_go_while_the_model_is_in_use(
    folder: Path, cache: CompiledCache, tmp_path: Path
):
    is_hit(folder, cache)
    loaded = load_model(folder, EngineConfig(), cache)
    [file] = files(tmp_path)
    file.unlink()
    assert loaded.compiled.create_infer_request() is not None
