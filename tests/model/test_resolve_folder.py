"""From a model argument to an IR folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovgen.errors import ConfigError, ModelNotFoundError
from ovgen.model import resolve
from ovgen.model.resolve import compiled_cache_folder, exported_folder, resolve_folder

LLAMA = Path(__file__).parents[1] / "fixtures" / "tiny" / "llama"


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str]]:
    """Records what would be exported; the export itself is a file."""
    calls: list[tuple[Path, str]] = []

    def export(gguf: Path, folder: Path, *, weights: str, progress=None) -> Path:
        calls.append((gguf, weights))
        folder.mkdir(parents=True)
        (folder / "openvino_model.xml").write_text("<net/>")
        return folder

    monkeypatch.setattr("ovgen.export.exporter.export_model", export)
    return calls


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF, as it were")
    return path


@pytest.mark.parametrize("kind", [str, Path])
def test_an_ir_folder_is_itself(kind):
    assert resolve_folder(kind(LLAMA)) == LLAMA


def test_an_ir_folder_needs_no_hub(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ovgen.hub.resolve.resolve_model", lambda *_, **__: pytest.fail("asked"))
    assert resolve_folder(LLAMA) == LLAMA


def test_an_alias_goes_to_the_hub(monkeypatch: pytest.MonkeyPatch):
    from ovgen.hub.resolve import ResolvedModel

    def resolve_model(model: str, *, offline: bool | None) -> ResolvedModel:
        assert (model, offline) == ("some-alias", True)
        return ResolvedModel("ir", LLAMA, model)

    monkeypatch.setattr("ovgen.hub.resolve.resolve_model", resolve_model)
    assert resolve_folder("some-alias", offline=True) == LLAMA


def test_weights_of_what_is_exported_already():
    with pytest.raises(ConfigError, match="weights='int8_sym' has no effect"):
        resolve_folder(LLAMA, weights="int8_sym")


def test_a_gguf_file_is_exported_once(gguf: Path, exports: list, ovgen_home: Path):
    folders = [resolve_folder(gguf) for _ in range(2)]
    assert folders[0] == folders[1]
    assert folders[0].is_relative_to(ovgen_home / "models")
    assert exports == [(gguf, "auto")]


def test_each_weight_format_has_its_own_folder(gguf: Path, exports: list):
    folders = {resolve_folder(gguf, weights=weights) for weights in ("auto", "exact", "int8_sym")}
    assert len(folders) == 3
    assert len(exports) == 3


def test_a_changed_gguf_file_is_exported_anew(gguf: Path, exports: list):
    before = resolve_folder(gguf)
    gguf.write_bytes(b"GGUF, but a longer one")
    assert resolve_folder(gguf) != before
    assert len(exports) == 2


def test_a_new_version_of_the_export(gguf: Path, exports: list, monkeypatch: pytest.MonkeyPatch):
    before = exported_folder(gguf, "auto")
    monkeypatch.setattr(resolve, "EXPORT_VERSION", 999)
    assert exported_folder(gguf, "auto") != before


def test_compiled_models_are_in_the_cache(ovgen_home: Path):
    assert compiled_cache_folder() == ovgen_home / "compiled"


@pytest.mark.parametrize("model", ["", "x" * 5000, "a\0b", "no/such/folder", Path("no-such")])
def test_no_such_model(model: str | Path):
    with pytest.raises(ModelNotFoundError):
        resolve_folder(model)


def test_an_empty_name_is_not_the_working_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(LLAMA)
    with pytest.raises(ModelNotFoundError):
        resolve_folder("")
    assert resolve_folder(".") == Path()
