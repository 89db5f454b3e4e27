"""The file of profiles: where it goes, and what it must not hold."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ovgen.errors import ModelFormatError, StorageError
from ovgen.model.profile_file import (
    PROFILE_NAME,
    Machine,
    Profile,
    profile_paths,
    read_profiles,
    remove_profiles,
    store_profile,
)

HERE = Machine("CPU", "A CPU", 8, "2026.4.1")
FIGURES = {"ttft": 0.2, "tpot": 0.01, "throughput": 99.0, "kl": 0.002, "ratio": 0.9, "max_kl": 0.01}
PROFILE = Profile("latency", HERE, "abc", {"KV_CACHE_PRECISION": "f16"}, FIGURES)


def test_what_was_stored_is_read(tmp_path: Path):
    path = store_profile(tmp_path, PROFILE)
    assert path == tmp_path / PROFILE_NAME
    assert read_profiles(tmp_path) == [PROFILE]
    assert os.listdir(tmp_path) == [PROFILE_NAME]


def test_a_profile_takes_the_place_of_what_it_renews(tmp_path: Path):
    other_machine = replace(PROFILE, machine=replace(HERE, num_cpus=4))
    throughput = replace(PROFILE, goal="throughput")
    newer = replace(PROFILE, machine=replace(HERE, openvino="2026.5"), properties={})
    for profile in (PROFILE, other_machine, throughput, newer):
        store_profile(tmp_path, profile)
    assert read_profiles(tmp_path) == [other_machine, throughput, newer]
    other_files = replace(PROFILE, model="def")
    store_profile(tmp_path, other_files)
    assert read_profiles(tmp_path) == [other_files]


def test_many_machines_do_not_outgrow_the_file(tmp_path: Path):
    profiles = [asdict(replace(PROFILE, machine=replace(HERE, num_cpus=n + 1))) for n in range(150)]
    content = {"version": 1, "profiles": profiles}
    (tmp_path / PROFILE_NAME).write_text(json.dumps(content))
    store_profile(tmp_path, PROFILE)
    assert len(read_profiles(tmp_path)) == 100
    assert read_profiles(tmp_path)[-1] == PROFILE


def make_unwritable(folder: Path) -> None:
    """Where the file would be is a folder: that stops root as well."""
    (folder / PROFILE_NAME).mkdir(parents=True)


def test_a_folder_that_may_not_be_written(tmp_path: Path, ovgen_home: Path):
    make_unwritable(tmp_path / "model")
    path = store_profile(tmp_path / "model", PROFILE)
    assert path.parent == ovgen_home / "profiles"
    assert read_profiles(tmp_path / "model") == [PROFILE]
    assert read_profiles(tmp_path / "other" / "model") == []
    assert remove_profiles_after_clearing(tmp_path / "model") == [path]
    assert read_profiles(tmp_path / "model") == []


def remove_profiles_after_clearing(folder: Path) -> list[Path]:
    (folder / PROFILE_NAME).rmdir()
    return remove_profiles(folder)


def test_a_folder_that_may_be_written_again_takes_all(tmp_path: Path):
    make_unwritable(tmp_path)
    at_home = store_profile(tmp_path, PROFILE)
    (tmp_path / PROFILE_NAME).rmdir()
    throughput = replace(PROFILE, goal="throughput")
    store_profile(tmp_path, throughput)
    assert not at_home.exists()
    assert read_profiles(tmp_path) == [PROFILE, throughput]


def test_nowhere_to_write(tmp_path: Path):
    for path in profile_paths(tmp_path):
        path.mkdir(parents=True)
    with pytest.raises(StorageError, match="OVGEN_HOME"):
        store_profile(tmp_path, PROFILE)
    with pytest.raises(StorageError, match="cannot remove"):
        remove_profiles(tmp_path)


def test_removing(tmp_path: Path):
    assert remove_profiles(tmp_path) == []
    (tmp_path / PROFILE_NAME).write_text("damaged")
    assert remove_profiles(tmp_path) == [tmp_path / PROFILE_NAME]


def test_tuning_writes_a_damaged_file_anew(tmp_path: Path):
    (tmp_path / PROFILE_NAME).write_text("damaged")
    store_profile(tmp_path, PROFILE)
    assert read_profiles(tmp_path) == [PROFILE]


@pytest.mark.parametrize("version", [0, 2])
def test_another_version_is_passed_over(tmp_path: Path, version: int):
    (tmp_path / PROFILE_NAME).write_text(json.dumps({"version": version, "anything": 1}))
    assert read_profiles(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"{}", b'{"version": true}',
     b'{"version": 2}' + b" " * (1 << 19),
     b'{"version": 1}', b'{"version": 1, "profiles": {}}', b'{"version": 1, "profiles": [5]}'],
)  # fmt: skip
def test_a_damaged_file(tmp_path: Path, content: bytes):
    (tmp_path / PROFILE_NAME).write_bytes(content)
    with pytest.raises(ModelFormatError, match=r"ovgen_profile\.json .*--reset") as caught:
        read_profiles(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("goal",), "speed", "goal"),
        (("goal",), ["latency"], "goal"),
        (("model",), 5, "name"),
        (("model",), "x" * 1000, "name"),
        (("machine",), None, "machine"),
        (("machine", "device"), 5, "name"),
        (("machine", "num_cpus"), True, "num_cpus"),
        (("machine", "num_cpus"), 0, "num_cpus"),
        (("machine", "num_cpus"), 1.5, "num_cpus"),
        (("machine", "extra"), 1, "machine"),
        (("properties",), [], "properties"),
        (("properties", "CACHE_DIR"), "/etc", "CACHE_DIR"),
        (("properties", "WEIGHTS_PATH"), "/etc/passwd", "WEIGHTS_PATH"),
        (("properties", "KV_CACHE_PRECISION"), "u4", "KV_CACHE_PRECISION"),
        (("properties", "INFERENCE_PRECISION_HINT"), 5, "INFERENCE_PRECISION_HINT"),
        (("properties", "DYNAMIC_QUANTIZATION_GROUP_SIZE"), "-1", "DYNAMIC"),
        (("properties", "DYNAMIC_QUANTIZATION_GROUP_SIZE"), "129", "DYNAMIC"),
        (("properties", "INFERENCE_NUM_THREADS"), "0", "INFERENCE_NUM_THREADS"),
        (("properties", "INFERENCE_NUM_THREADS"), "999999", "INFERENCE_NUM_THREADS"),
        (("properties", "INFERENCE_NUM_THREADS"), "9" * 5000, "INFERENCE_NUM_THREADS"),
        (("properties", "INFERENCE_NUM_THREADS"), "\u0663", "INFERENCE_NUM_THREADS"),
        (("properties", "INFERENCE_NUM_THREADS"), 4, "INFERENCE_NUM_THREADS"),
        (("properties", "ENABLE_CPU_PINNING"), "maybe", "ENABLE_CPU_PINNING"),
        (("figures", "ttft"), float("nan"), "ttft"),
        (("figures", "ttft"), -1, "ttft"),
        (("figures", "ttft"), "fast", "ttft"),
        (("figures", "ttft"), True, "ttft"),
        (("figures", "other"), 1, "figures"),
        (("extra",), 1, "profile"),
    ],
)
def test_what_a_profile_must_not_hold(tmp_path: Path, place, value, told):
    entry = asdict(PROFILE)
    inner = entry[place[0]] if len(place) > 1 else entry
    inner[place[-1]] = value
    (tmp_path / PROFILE_NAME).write_text(json.dumps({"version": 1, "profiles": [entry]}))
    with pytest.raises(ModelFormatError, match=told) as caught:
        read_profiles(tmp_path)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_no_profile(tmp_path: Path):
    os.mkfifo(tmp_path / PROFILE_NAME)  # reading it would wait forever
    assert read_profiles(tmp_path) == []


def test_misfits():
    assert PROFILE.misfit(HERE, "abc") is None
    assert "other model files" in (PROFILE.misfit(HERE, "def") or "")
    for name, value in (("num_cpus", 4), ("openvino", "2026.5"), ("device_name", "B")):
        told = PROFILE.misfit(replace(HERE, **{name: value}), "abc")
        assert f"{name.replace('_', ' ')} {getattr(HERE, name)}, and here it is {value}" in told
