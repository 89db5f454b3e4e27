"""`ovgen export` and `ovgen pull`."""

from __future__ import annotations

import pytest

IR_FILES = {
    "openvino_model.xml", "openvino_model.bin", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "openvino_tokenizer.xml", "openvino_tokenizer.bin",
    "openvino_detokenizer.xml", "openvino_detokenizer.bin",
}  # fmt: skip


@pytest.mark.parametrize("weights", [None, "auto", "exact", "int8", "f16"])
def test_export(cli, gguf_file, tmp_path, weights):
    folder = tmp_path / "deep" / "down" / "ir"
    options = ("--weights", weights) if weights else ()
    assert cli("export", gguf_file, folder, *options).text() == f"{folder}\n"
    assert {path.name for path in folder.iterdir()} == IR_FILES
    assert [path.name for path in folder.parent.iterdir()] == ["ir"]
    assert cli("run", folder, "hello", "--raw", "--max-new-tokens", "4").text()


def test_weights_matter(cli, gguf_file, tmp_path):
    sizes = {}
    for weights in ("int8", "f16"):
        cli("export", gguf_file, tmp_path / weights, "--weights", weights).text()
        sizes[weights] = (tmp_path / weights / "openvino_model.bin").stat().st_size
    assert sizes["f16"] > 1.7 * sizes["int8"]


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
