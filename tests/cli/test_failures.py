"""What can be wrong with a model, an option or the machine: one line, exit 1, nothing left."""

from __future__ import annotations

import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import pytest
from cli.command import files_in

# --- files


def test_missing_file(fails, tmp_path):
    path = tmp_path / "none.gguf"
    assert str(path) in fails("run", path, "hi")
    assert str(path) in fails("export", path, tmp_path / "out")
    assert str(path) in fails("pull", path)


def test_folder_without_ir(fails, tmp_path):
    assert "openvino_model.xml" in fails("run", tmp_path, "hi")


def test_missing_bin(fails, ir):
    (ir / "openvino_model.bin").unlink()
    assert "openvino_model.bin does not exist" in fails("run", ir, "hi")


@pytest.mark.parametrize("left", [0, 1000, -1])
def test_truncated_bin(fails, ir, left):
    path = ir / "openvino_model.bin"
    path.write_bytes(path.read_bytes()[:left])
    assert "openvino_model" in fails("run", ir, "hi")


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_xml_cut(fails, ir, share):
    path = ir / "openvino_model.xml"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "openvino_model.xml cannot be read" in fails("run", ir, "hi")


@pytest.mark.parametrize("content", [b"", b"{", b"not JSON", b"[]", b"{}", b"\xff\xfe"])
def test_tokenizer_json(fails, ir, content):
    (ir / "tokenizer.json").write_bytes(content)
    assert "tokenizer.json" in fails("run", ir, "hi")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_config_that_is_not_json(fails, ir, name):
    (ir / name).write_text("{'a': 1}")
    assert name in fails("run", ir, "hi")


def test_no_tokenizer(fails, ir):
    (ir / "tokenizer.json").unlink()
    assert "no tokenizer" in fails("run", ir, "hi")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for %}", "syntax error"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{% for i in range(10**9) %}{% endfor %}", "chat template"),
        ("", "empty prompt"),
    ],
)
def test_chat_template(fails, ir, template, reason):
    (ir / "chat_template.jinja").write_text(template)
    assert reason in fails("run", ir, "hi")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--option", "temperature=0.5"], "temperature=0.5 has no effect without sampling"),
        (["--option", "length_penalty=2"], "length_penalty=2.0 has no effect without beam search"),
    ],
)
def test_an_option_against_the_models_own_is_found_before_the_model_loads(
    fails, ir, options, reason
):
    (ir / "openvino_model.bin").unlink()
    assert reason in fails("run", ir, "hi", *options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--temperature", "0"], "temperature must be a finite number above 0"),
        (["--top-p", "nan"], "top_p must be"),
        (["--seed", "-1"], "seed must be"),
        (["--option", "logit_bias=5"], "logit_bias must be a dict"),
        (["--num-beams", "2", "--option", "mirostat_tau=5"], "num_beams=2: set num_beams=1"),
        (["--temperature", "0.5", "--option", "do_sample=false"], "without sampling: give do_samp"),
    ],
)
def test_a_broken_option_is_found_before_the_model(fails, tmp_path, options, reason):
    assert reason in fails("run", tmp_path / "none", "hi", *options)


def test_no_chat_template(fails, ir):
    (ir / "chat_template.jinja").unlink()
    assert "--raw" in fails("run", ir, "hi")


# --- GGUF files


def _magic(data: bytearray) -> None:
    data[:4] = b"GGML"


def _half(data: bytearray) -> None:
    del data[len(data) // 2 :]


def _end(data: bytearray) -> None:
    del data[-1:]


def _header_only(data: bytearray) -> None:
    del data[100:]


def _nothing(data: bytearray) -> None:
    data.clear()


def _tensor_count(data: bytearray) -> None:
    data[8:16] = struct.pack("<Q", 1 << 62)


def _kv_count(data: bytearray) -> None:
    data[16:24] = struct.pack("<Q", 1 << 40)


def _array_length(data: bytearray) -> None:
    # Of the token list: key, type (array), type (string), then the count.
    start = data.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    data[start : start + 8] = struct.pack("<Q", 1 << 60)


def _tensor_fields(data: bytearray, name: bytes) -> int:
    """Where the type of a matrix is: after its name, the number of its dimensions and these."""
    return data.index(name) + len(name) + 4 + 2 * 8


def _tensor_type(data: bytearray) -> None:
    at = _tensor_fields(data, b"blk.0.attn_q.weight")
    data[at : at + 4] = struct.pack("<I", 200)


def _tensor_offset(data: bytearray) -> None:
    at = _tensor_fields(data, b"blk.0.attn_q.weight") + 4
    data[at : at + 8] = struct.pack("<Q", 1 << 40)


def _version(data: bytearray) -> None:
    data[4:8] = struct.pack("<I", 77)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_magic, "not a GGUF file"),
        (_half, "damaged"),
        (_end, "damaged"),
        (_header_only, "truncated"),
        (_nothing, "empty"),
        (_tensor_count, "tensors"),
        (_kv_count, "metadata keys"),
        (_array_length, "tokenizer.ggml.tokens"),
        (_tensor_type, "200"),
        (_tensor_offset, "blk.0.attn_q.weight"),
        (_version, "version 77"),
    ],
)
def test_spoilt_gguf(fails, gguf_file, tmp_path, spoil, reason):
    data = bytearray(gguf_file.read_bytes())
    spoil(data)
    gguf_file.write_bytes(data)
    for line in (
        fails("export", gguf_file, tmp_path / "out"),
        fails("run", gguf_file, "hi"),
        fails("pull", gguf_file),
    ):
        assert reason in line
        assert str(gguf_file) in line


def test_unsupported_architecture(fails, tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "rwkv7")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    line = fails("export", path, tmp_path / "out")
    assert "'rwkv7'" in line
    assert "supported: " in line
    assert "llama" in line


def test_missing_tensor(fails, gguf_file, tmp_path):
    data = gguf_file.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_no.weight")
    gguf_file.write_bytes(data)
    line = fails("export", gguf_file, tmp_path / "out")
    assert "'model.layers.1.mlp.up_proj.weight' is missing" in line


# --- downloads


def test_wrong_sha256(fails, gguf_file, tmp_path, monkeypatch):
    catalog = tmp_path / "models.yaml"
    catalog.write_text(
        "default: tiny\nmodels:\n  tiny:\n    title: Tiny\n    architecture: llama\n"
        f"    license: MIT\n    context_length: 128\n    sha256: {'ab' * 32}\n"
        f"    sources: ['file:{gguf_file}']\n"
    )
    monkeypatch.setattr("ovgen.hub.catalog.catalog_path", lambda: catalog)
    for command in (("run", "tiny", "hi"), ("pull", "tiny"), ("export", "tiny", tmp_path / "out")):
        assert "sha256" in fails(*command)


@pytest.mark.parametrize("model", ["org/name", "smollm2-135m-instruct"])
def test_no_network(fails, model):
    assert "check the network" in fails("run", model, "hi")


@pytest.mark.parametrize("model", ["org/name", "smollm2-135m-instruct"])
def test_offline(fails, model, tmp_path):
    assert f"ovgen pull {model}" in fails("run", model, "hi", "--offline")
    assert f"ovgen pull {model}" in fails("export", model, tmp_path / "out", "--offline")


def test_unknown_alias(fails):
    assert "smollm2-135m-instruct" in fails("run", "smollm2-135-instruct", "hi")


# --- requests


def test_prompt_longer_than_the_context(fails, ir):
    assert "context" in fails("run", ir, "hello " * 400)


@pytest.mark.parametrize("options", [[], ["--raw"]])
def test_empty_prompt(fails, ir, options):
    assert "prompt is empty" in fails("run", ir, "", *options)


@pytest.mark.parametrize("count", [0, -1, 1 << 40])
def test_max_new_tokens(fails, ir, count):
    assert "max_new_tokens" in fails("run", ir, "hi", "--max-new-tokens", count)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_max_time(fails, ir, seconds):
    assert "max_time" in fails("run", ir, "hi", "--max-time", seconds)


def test_empty_stop_string(fails, ir):
    assert "stop_strings" in fails("run", ir, "hi", "--stop", "")


@pytest.mark.parametrize("device", ["TPU", "", "CPU.7", "GPU:0", ":", "HETERO:TPU,CPU"])
def test_unknown_device(fails, ir, device):
    assert "device" in fails("run", ir, "hi", "--device", device).lower()


@pytest.mark.parametrize("setting", ["NO_SUCH_PROPERTY=1", "PERFORMANCE_HINT=FAST"])
def test_wrong_property(fails, ir, setting):
    assert setting.split("=")[0] in fails("run", ir, "hi", "--property", setting)


def test_property_against_precision(fails, ir):
    line = fails("run", ir, "hi", "--precision=exact", "--property=KV_CACHE_PRECISION=u8")
    assert "KV_CACHE_PRECISION" in line


def test_weights_of_an_ir(fails, ir, tmp_path):
    assert "no effect" in fails("run", ir, "hi", "--weights", "int8_sym")
    assert "no effect" in fails("pull", ir, "--weights", "int8_sym")
    assert "exported already" in fails("export", ir, tmp_path / "out")


# --- disks


def test_export_to_a_folder_that_holds_something(fails, gguf_file, ir):
    assert "not an empty folder" in fails("export", gguf_file, ir)
    assert "not an empty folder" in fails("export", gguf_file, gguf_file)


def test_export_below_a_file(fails, gguf_file):
    assert "cannot be written" in fails("export", gguf_file, gguf_file / "out")


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    """A small disk at ``folder``."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def exported_size(cli, gguf_file, tmp_path) -> int:
    folder = tmp_path / "whole"
    cli("export", gguf_file, folder).text()
    size = sum(path.stat().st_size for path in folder.iterdir())
    shutil.rmtree(folder)
    return size


@pytest.mark.parametrize("share", [0.003, 0.1, 0.5, 0.97, 0.99])
def test_disk_full(cli, gguf_file, tmp_path, exported_size, share, monkeypatch):
    disk = tmp_path / "disk"
    with tmpfs(disk, f"size={int(share * exported_size) // 4096 * 4}k"):
        for folder in (disk / "out", disk):
            cli("export", gguf_file, folder).one_error_line()
            assert list(disk.iterdir()) == []
        monkeypatch.setenv("OVGEN_HOME", str(disk))
        cli("run", gguf_file, "hi", "--raw").one_error_line()
        assert files_in(disk) == {}


def test_a_mount_as_target(cli, gguf_file, tmp_path):
    disk = tmp_path / "disk"
    with tmpfs(disk, "size=20m"):
        cli("export", gguf_file, disk).text()
        assert cli("run", disk, "hi", "--raw", "--max-new-tokens", "3").text()


@pytest.mark.parametrize("limit", [2_000, 100_000])
def test_files_that_may_not_grow(process, gguf_file, tmp_path, limit):
    """A quota: the system refuses to write beyond a file size."""

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    before = files_in(tmp_path)
    process("export", gguf_file, tmp_path / "out", preexec_fn=lower).one_error_line()
    assert files_in(tmp_path) == before


def test_full_stdout(process, ir):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ovgen", "run", str(ir), "hi", "--raw", "--max-new-tokens=4"],
            stdout=full,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
    assert done.returncode == 1
    assert done.stderr.decode() == "ovgen: cannot write to stdout: No space left on device\n"


@pytest.fixture
def unwritable_home(tmp_path, monkeypatch) -> Path:
    """A cache folder that cannot be made: root, too, needs a folder to make one in."""
    (tmp_path / "file").write_text("")
    home = tmp_path / "file" / "home"
    monkeypatch.setenv("OVGEN_HOME", str(home))
    return home


@pytest.mark.parametrize("command", [["run", "{}", "hi"], ["pull", "{}"]])
@pytest.mark.parametrize("model", ["smollm2-135m-instruct", "gguf"])
def test_unwritable_cache(fails, gguf_file, unwritable_home, command, model):
    name = str(gguf_file) if model == "gguf" else model
    line = fails(*(part.format(name) for part in command))
    assert "OVGEN_HOME" in line
    assert str(unwritable_home) in line


def test_an_ir_runs_without_a_cache(cli, ir, unwritable_home):
    assert cli("run", ir, "hi", "--max-new-tokens", "3").text()
    assert not os.path.exists(unwritable_home)


def test_read_only_disk(cli, ir, gguf_file, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    with tmpfs(disk, "size=1m,ro"):
        monkeypatch.setenv("OVGEN_HOME", str(disk / "home"))
        assert cli("run", ir, "hi", "--max-new-tokens", "3").text()
        assert "OVGEN_HOME" in cli("run", gguf_file, "hi").one_error_line()
        assert "OVGEN_HOME" in cli("run", "smollm2-135m-instruct", "hi").one_error_line()
        assert "cannot be written" in cli("export", gguf_file, disk / "out").one_error_line()


def test_an_ir_on_a_read_only_disk_runs(cli, ir, tmp_path):
    disk = tmp_path / "disk"
    with tmpfs(disk, "size=20m"):
        shutil.copytree(ir, disk / "ir")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert cli("run", disk / "ir", "hi", "--max-new-tokens", "3").text()
