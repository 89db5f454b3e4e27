"""`ovgen export` and `ovgen pull`."""

from __future__ import annotations

import re

import pytest
import tiny_checkpoints

IR_FILES = {
    "openvino_model.xml", "openvino_model.bin", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "openvino_tokenizer.xml", "openvino_tokenizer.bin",
    "openvino_detokenizer.xml", "openvino_detokenizer.bin",
}  # fmt: skip


@pytest.mark.parametrize("weights", [None, "auto", "exact", "int8_sym", "fp16"])
def test_export(cli, gguf_file, tmp_path, weights):
    folder = tmp_path / "deep" / "down" / "ir"
    options = ("--weights", weights) if weights else ()
    assert cli("export", gguf_file, folder, *options).text() == f"{folder}\n"
    assert {path.name for path in folder.iterdir()} == IR_FILES
    assert [path.name for path in folder.parent.iterdir()] == ["ir"]
    assert cli("run", folder, "hello", "--raw", "--max-new-tokens", "4").text()


def test_weights_matter(cli, gguf_file, tmp_path):
    sizes = {}
    for weights in ("int8_sym", "fp16"):
        cli("export", gguf_file, tmp_path / weights, "--weights", weights).text()
        sizes[weights] = (tmp_path / weights / "openvino_model.bin").stat().st_size
    assert sizes["fp16"] > 1.7 * sizes["int8_sym"]


def test_options_of_the_weights(cli, gguf_file, tmp_path):
    options = "--weights int4_sym --group-size 32 --ratio 0.5 --override *.o_proj.weight=fp16"
    result = cli("export", gguf_file, tmp_path / "ir", *options.split())
    assert result.text() == f"{tmp_path / 'ir'}\n"
    lines = {line.split("  ")[0]: line for line in result.err.splitlines()}
    assert "int4_sym, group 32" in lines
    assert lines["o_proj"].endswith("fp16")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--ratio 0.5", "ratio has no effect on auto weights"),
        ("--weights int8_sym --no-scale-search", "scale_search has no effect on int8_sym"),
        ("--weights int4_sym --group-size 24", "group_size must be -1 .* not 24"),
        ("--weights int4_sym --ratio 1.5", "ratio must be between 0 and 1, not 1.5"),
        ("--override lm_haed*=fp16", "'lm_haed.' fits no tensor"),
        ("--override *=q4", "the mode of '.' must be one of .* not 'q4'"),
        ("--lora missing", "missing/adapter_config.json: no such file"),
    ],
)
def test_options_that_cannot_be(cli, gguf_file, tmp_path, options, problem):
    line = cli("export", gguf_file, tmp_path / "ir", *options.split()).one_error_line()
    assert re.search(problem, line)
    assert not (tmp_path / "ir").exists()


@pytest.mark.parametrize("name", [".", "../ir", "{}"])
def test_into_an_empty_folder(cli, gguf_file, tmp_path, monkeypatch, name):
    folder = tmp_path / "ir"
    folder.mkdir()
    before = folder.stat().st_ino
    monkeypatch.chdir(folder)
    cli("export", gguf_file, name.format(folder)).text()
    assert {path.name for path in folder.iterdir()} == IR_FILES
    assert folder.stat().st_ino == before  # whoever is in it stays in it


def test_export_from_a_source(cli, gguf_file, tmp_path):
    cli("export", f"file:{gguf_file}", tmp_path / "ir", "--offline").text()
    assert (tmp_path / "ir" / "openvino_model.xml").is_file()


@pytest.fixture
def saved(tmp_path):
    """A folder as transformers saves it."""
    record = tiny_checkpoints.records()["llama"]
    return tiny_checkpoints.write_checkpoint(tmp_path / "saved", record, num_shards=2)


def test_export_of_a_folder_of_transformers(cli, saved, tmp_path):
    cli("export", saved, tmp_path / "ir").text()
    assert {path.name for path in (tmp_path / "ir").iterdir()} == IR_FILES
    assert cli("run", tmp_path / "ir", "hello", "--raw", "--max-new-tokens", "4").text()


def test_a_folder_of_transformers_runs(cli, saved, ovgen_home):
    first = cli("run", saved, "hello", "--raw", "--max-new-tokens", "4").text()
    (folder,) = ovgen_home.glob("models/saved-*")
    before = (folder / "openvino_model.bin").stat().st_mtime_ns
    assert cli("run", saved, "hello", "--raw", "--max-new-tokens", "4").text() == first
    assert (folder / "openvino_model.bin").stat().st_mtime_ns == before
    assert cli("pull", saved).text() == f"{folder}\n"


def test_a_repository_of_transformers_runs(cli, saved, web, monkeypatch, ovgen_home):
    web.add_repo("org/name", {path.name: path.read_bytes() for path in saved.iterdir()})
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    folder = cli("pull", "org/name").text().removesuffix("\n")
    assert folder.startswith(f"{ovgen_home}/models/org--name-")
    asked = sum(web.requests.values())
    assert cli("run", "org/name", "hello", "--raw", "--max-new-tokens", "4").text()
    assert sum(web.requests.values()) == asked  # from the cache


def test_pull_exports(cli, gguf_file, ovgen_home):
    folder = cli("pull", gguf_file).text().removesuffix("\n")
    assert [str(path) for path in ovgen_home.glob("models/*")] == [folder]
    before = (ovgen_home / folder / "openvino_model.bin").stat().st_mtime_ns
    cli("run", gguf_file, "hello", "--raw", "--max-new-tokens", "4").text()
    assert [str(path) for path in ovgen_home.glob("models/*")] == [folder]
    assert (ovgen_home / folder / "openvino_model.bin").stat().st_mtime_ns == before


def test_pull_of_an_ir_folder(cli, ir):
    assert cli("pull", ir).text() == f"{ir}\n"


def test_pull_from_the_hub(cli, ir, web, monkeypatch, ovgen_home):
    web.add_repo("org/name", {path.name: path.read_bytes() for path in ir.iterdir()})
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    folder = cli("pull", "org/name").text().removesuffix("\n")
    assert folder.startswith(str(ovgen_home))
    asked = sum(web.requests.values())
    assert cli("run", "org/name", "hello", "--max-new-tokens", "4").text()
    assert sum(web.requests.values()) == asked  # from the cache
    assert cli("run", folder, "hello", "--max-new-tokens", "4", "--offline").text()


@pytest.mark.model
def test_pull_of_an_alias(cli, smollm2_gguf, ovgen_home, monkeypatch, tmp_path):
    catalog = tmp_path / "models.yaml"
    catalog.write_text(
        "default: tiny\nmodels:\n  tiny:\n    title: Tiny\n    architecture: llama\n"
        f"    license: MIT\n    context_length: 128\n    sources: ['file:{smollm2_gguf}']\n"
    )
    monkeypatch.setattr("ovgen.hub.catalog.catalog_path", lambda: catalog)
    folder = cli("pull", "tiny").text().removesuffix("\n")
    assert cli("run", "tiny", "Say hi.", "--max-new-tokens", "4").text()
    assert [str(path) for path in ovgen_home.glob("models/*")] == [folder]
