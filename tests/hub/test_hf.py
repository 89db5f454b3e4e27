from __future__ import annotations

import hashlib
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub.hub_fakes import EXTRA_FILES, IR_FILES, commit_of, files_under

from ovgen.errors import DownloadError, ModelNotFoundError, StorageError
from ovgen.hub.hf import fetch_from_hub, find_in_user_cache, needed_files
from ovgen.hub.sources import HubSource

REPO = HubSource("org/tiny")
ALL = {**IR_FILES, **EXTRA_FILES}
CHECKPOINT = {"config.json": b"{}", "tokenizer.json": b"{}", "chat_template.jinja": b""}
LATER = {**IR_FILES, "config.json": b'{"later": true}'}
BIN = f"/org/tiny/resolve/{commit_of(ALL)}/openvino_model.bin"


@pytest.fixture
def hub(web, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", web.url + "/")
    web.add_repo("org/tiny", ALL)
    return web


def test_a_repository_gives_the_files_a_run_needs(hub, tmp_path, capfd):
    folder = fetch_from_hub(REPO, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == IR_FILES
    assert capfd.readouterr() == ("", "")  # no bar, no warning when stderr is no terminal
    asked = [request for request in hub.requests if "telemetry" in request]
    assert asked == []


def test_a_revision_is_taken(hub, tmp_path):
    hub.add_repo("org/tiny", LATER, "v2")
    folder = fetch_from_hub(HubSource("org/tiny", "v2"), tmp_path)
    assert (folder / "config.json").read_bytes() == LATER["config.json"]


def test_one_file_is_taken_alone(hub, tmp_path):
    hub.add_repo("org/gguf", {"a.gguf": b"GGUF a", "sub/b.gguf": b"GGUF b"})
    path = fetch_from_hub(HubSource("org/gguf", None, "sub/b.gguf"), tmp_path)
    assert path.read_bytes() == b"GGUF b"
    assert not any("a.gguf" in request for request in hub.requests)


def test_the_only_gguf_of_a_repository_is_taken(hub, tmp_path):
    hub.add_repo("org/gguf", {"a.gguf": b"GGUF a", "config.json": b"{}"})
    assert fetch_from_hub(HubSource("org/gguf"), tmp_path).read_bytes() == b"GGUF a"


PARTS = {f"sub/m-0000{number}-of-00003.gguf": b"part %d" % number for number in (1, 2, 3)}


@pytest.mark.parametrize("file", [None, *PARTS])
def test_all_parts_of_a_split_gguf_are_taken(hub, tmp_path, file):
    more = {"other.gguf": b"", "sub/m.gguf": b""} if file else {"config.json": b"{}"}
    hub.add_repo("org/gguf", PARTS | more)
    path = fetch_from_hub(HubSource("org/gguf", None, file), tmp_path)
    assert path.name == Path(file or "sub/m-00001-of-00003.gguf").name
    assert {part.read_bytes() for part in path.parent.iterdir()} == set(PARTS.values())


def test_a_split_gguf_in_the_users_own_hub_cache_needs_all_parts(hub, tmp_path):
    hub.add_repo("org/gguf", PARTS)
    source = HubSource("org/gguf", None, next(iter(PARTS)))
    from huggingface_hub import hf_hub_download

    for name in PARTS:
        assert find_in_user_cache(source) is None
        hf_hub_download("org/gguf", name, cache_dir=tmp_path / "user_hf" / "hub", endpoint=hub.url)
    assert find_in_user_cache(source) is not None


def test_a_part_number_that_cannot_be_is_a_file_like_any_other():
    for name in ("m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-00001-of-99999.gguf"):
        assert needed_files(REPO, [name]) == [name]


def test_several_ggufs_ask_for_one(hub, tmp_path):
    hub.add_repo("org/gguf", {"a.gguf": b"", "b.gguf": b""})
    with pytest.raises(ModelNotFoundError, match=re.escape("hf:org/gguf/a.gguf (it has a.gguf,")):
        fetch_from_hub(HubSource("org/gguf"), tmp_path)


def test_a_repository_without_a_model_says_what_it_has(hub, tmp_path):
    hub.add_repo("org/torch", {"pytorch_model.bin": b"", "config.json": b"{}"})
    wanted = r"neither openvino_model\.xml, config\.json with model\.safetensors, nor a \.gguf"
    with pytest.raises(ModelNotFoundError, match=wanted) as e:
        fetch_from_hub(HubSource("org/torch"), tmp_path)
    assert "config.json, pytorch_model.bin" in str(e.value)


def test_a_checkpoint_gives_the_files_that_an_export_reads(hub, tmp_path):
    hub.add_repo("org/one", CHECKPOINT | {"model.safetensors": b"all", "pytorch_model.bin": b"all"})
    folder = fetch_from_hub(HubSource("org/one"), tmp_path)
    assert {path.name for path in folder.iterdir()} == {*CHECKPOINT, "model.safetensors"}


def test_the_shards_of_a_checkpoint(hub, tmp_path):
    shards = {f"model-0000{number}-of-00002.safetensors": b"half" for number in (1, 2)}
    index = {"model.safetensors.index.json": index_of(shards)}
    # Some repositories hold the same weights once more, by other names.
    more = {"consolidated.safetensors": b"all", "original/model.safetensors": b"all", "m.gguf": b""}
    hub.add_repo("org/two", CHECKPOINT | index | shards | more)
    folder = fetch_from_hub(HubSource("org/two"), tmp_path)
    assert {path.name for path in folder.iterdir()} == {*CHECKPOINT, *index, *shards}


def test_shards_without_an_index_are_no_checkpoint():
    names = ["config.json", "model-00001-of-00002.safetensors"]
    with pytest.raises(ModelNotFoundError, match="name a repository with one of these"):
        needed_files(REPO, names)


def index_of(shards) -> bytes:
    return json.dumps({"weight_map": {f"t{i}": name for i, name in enumerate(shards)}}).encode()


def test_only_needed_files_are_chosen():
    chosen = needed_files(REPO, list(ALL))
    assert sorted(chosen) == sorted(IR_FILES)
    assert chosen[0] == "openvino_model.xml"


def test_a_broken_connection_is_resumed_quietly(hub, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [caplog.handler])
    hub.drop_once.add(BIN)
    folder = fetch_from_hub(REPO, tmp_path)
    assert caplog.records == []
    assert (folder / "openvino_model.bin").read_bytes() == IR_FILES["openvino_model.bin"]
    assert hub.requests[f"GET {BIN}"] == 2


def test_what_is_there_is_not_downloaded_again(hub, tmp_path):
    first = fetch_from_hub(REPO, tmp_path)
    assert fetch_from_hub(REPO, tmp_path) == first
    assert hub.requests[f"GET {BIN}"] == 1


def test_a_later_revision_replaces_the_first(hub, tmp_path):
    fetch_from_hub(REPO, tmp_path)
    hub.add_repo("org/tiny", LATER)
    folder = fetch_from_hub(REPO, tmp_path)
    assert (folder / "config.json").read_bytes() == LATER["config.json"]


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        (HubSource("org/none"), ModelNotFoundError, "no such repository"),
        (HubSource("org/tiny", "v9"), ModelNotFoundError, "no revision 'v9'"),
        (HubSource("org/tiny", None, "x.gguf"), ModelNotFoundError, "x.gguf"),
        (HubSource("org/gated"), DownloadError, "accept its terms at"),
    ],
)
def test_what_the_hub_refuses_is_told(hub, tmp_path, source, error, says):
    hub.gated.add("org/gated")
    with pytest.raises(error, match=re.escape(says)) as caught:
        fetch_from_hub(source, tmp_path)
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)


def test_no_network_names_the_source_and_the_way_out(tmp_path, capfd):
    with pytest.raises(DownloadError, match="check the network, or HF_ENDPOINT") as caught:
        fetch_from_hub(REPO, tmp_path)
    assert "hf:org/tiny" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_answer_that_is_no_hub_is_told(hub, tmp_path):
    hub.pages["/api/models/org/tiny"] = b"<html>please log in to this network</html>"
    with pytest.raises(DownloadError, match="hf:org/tiny"):
        fetch_from_hub(REPO, tmp_path)


def test_bytes_that_are_not_the_announced_ones_are_removed(hub, tmp_path):
    hub.lfs["openvino_model.bin"] = "0" * 64
    got = hashlib.sha256(IR_FILES["openvino_model.bin"]).hexdigest()
    with pytest.raises(DownloadError) as caught:
        fetch_from_hub(REPO, tmp_path)
    assert got in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert not any("openvino_model.bin" in name or got in name for name in files_under(tmp_path))


def test_the_announced_sum_passes(hub, tmp_path):
    content = IR_FILES["openvino_model.bin"]
    hub.lfs["openvino_model.bin"] = hashlib.sha256(content).hexdigest()
    assert (fetch_from_hub(REPO, tmp_path) / "openvino_model.bin").read_bytes() == content


def test_a_folder_that_cannot_be_written_is_a_storage_error(hub, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="set OVGEN_HOME"):
        fetch_from_hub(REPO, tmp_path / "file" / "hf")


def test_a_disk_too_small_is_told_before(hub, tmp_path, monkeypatch):
    from ovgen.hub import cache

    class Usage:
        free = 1000

    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(StorageError, match="free some space"):
        fetch_from_hub(REPO, tmp_path)
    assert not any(request.startswith(f"GET {BIN}") for request in hub.requests)


def test_the_users_own_hub_cache_is_used_when_whole(hub, tmp_path):
    assert find_in_user_cache(REPO) is None
    user = tmp_path / "user_hf" / "hub"
    from huggingface_hub import hf_hub_download

    for name in IR_FILES:
        assert find_in_user_cache(REPO) is None or name not in ("openvino_model.bin",)
        hf_hub_download("org/tiny", name, cache_dir=user, endpoint=hub.url)
    found = find_in_user_cache(REPO)
    assert found is not None
    assert found.is_relative_to(user)
    bin_file = found / "openvino_model.bin"
    bin_file.unlink()
    assert find_in_user_cache(REPO) is None
    assert find_in_user_cache(HubSource("org/tiny", None, "config.json")) == found / "config.json"


def test_a_checkpoint_in_the_users_own_hub_cache_is_used_when_whole(hub, tmp_path):
    shards = {f"model-0000{number}-of-00002.safetensors": b"half" for number in (1, 2)}
    files = CHECKPOINT | {"model.safetensors.index.json": index_of(shards)} | shards
    hub.add_repo("org/two", files)
    source = HubSource("org/two")
    from huggingface_hub import hf_hub_download

    for name in files:
        assert find_in_user_cache(source) is None
        hf_hub_download("org/two", name, cache_dir=tmp_path / "user_hf" / "hub", endpoint=hub.url)
    assert find_in_user_cache(source) is not None


@pytest.mark.parametrize("setting", [None, "0"])
def test_telemetry_is_off_and_the_environment_as_it_was(monkeypatch, setting):
    name = "HF_HUB_DISABLE_TELEMETRY"
    monkeypatch.delenv(name, raising=False)
    if setting is not None:
        monkeypatch.setenv(name, setting)
    code = (
        "import os; from ovgen.hub.hf import *; find_in_user_cache(HubSource('org/tiny'))\n"
        "from huggingface_hub import constants\n"
        f"print(constants.{name}, os.environ.get({name!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", str(setting)]
