from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ovgen.errors import DownloadError, StorageError
from ovgen.hub import cache
from ovgen.hub.cache import home_folder, model_cache_folder, require_space, write_whole

DATA = b"0123456789" * 1000
SHA = hashlib.sha256(DATA).hexdigest()


def test_the_home_folder_is_the_argument_then_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("OVGEN_HOME", str(tmp_path / "variable"))
    assert home_folder(tmp_path / "argument") == tmp_path / "argument"
    assert home_folder() == tmp_path / "variable"


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"HOME": "/u"}, "/u/.cache/ovgen"),
        ("linux", {"HOME": "/u", "XDG_CACHE_HOME": "/x"}, "/x/ovgen"),
        ("linux", {"HOME": "/u", "XDG_CACHE_HOME": "relative"}, "/u/.cache/ovgen"),
        ("darwin", {"HOME": "/u", "XDG_CACHE_HOME": "/x"}, "/u/Library/Caches/ovgen"),
        ("win32", {"HOME": "/u", "LOCALAPPDATA": "/l"}, "/l/ovgen"),
        ("win32", {"HOME": "/u"}, "/u/AppData/Local/ovgen"),
    ],
)
def test_the_default_is_the_platforms_cache_folder(monkeypatch, platform, variables, expected):
    for name in ("OVGEN_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert home_folder() == Path(expected)


def test_an_unknown_home_directory_says_what_to_set(monkeypatch):
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("OVGEN_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(StorageError, match="set OVGEN_HOME"):
        home_folder()


def test_a_whole_file_appears_with_its_folder(tmp_path):
    target = tmp_path / "a" / "b.bin"
    write_whole(target, [DATA[:100], DATA[100:]], origin="x", sha256=SHA, size=len(DATA))
    assert target.read_bytes() == DATA
    assert list(target.parent.iterdir()) == [target]


def test_wrong_bytes_give_both_sums_and_leave_nothing(tmp_path):
    target = tmp_path / "b.bin"
    other = "0" * 64
    with pytest.raises(DownloadError) as caught:
        write_whole(target, [DATA], origin="file:/x", sha256=other)
    assert SHA in str(caught.value)
    assert other in str(caught.value)
    assert "file:/x" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_wrong_bytes_leave_the_former_file(tmp_path):
    target = tmp_path / "b.bin"
    target.write_bytes(b"former")
    with pytest.raises(DownloadError):
        write_whole(target, [DATA], origin="x", sha256="0" * 64)
    assert target.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [target]


def test_too_few_bytes_are_told(tmp_path):
    with pytest.raises(DownloadError, match="gave 10000 bytes, expected 10001"):
        write_whole(tmp_path / "b", [DATA], origin="x", size=10001)


def test_a_stream_without_end_is_cut(tmp_path):
    def endless():
        while True:
            yield DATA

    with pytest.raises(DownloadError, match="more than 10 bytes"):
        write_whole(tmp_path / "b", endless(), origin="x", size=10)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupted():
        yield DATA
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "b", interrupted(), origin="x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot write .*; set OVGEN_HOME to a folder that you"):
        write_whole(tmp_path / "file" / "b", [DATA], origin="x")
    with (
        pytest.raises(StorageError, match="set OVGEN_HOME"),
        cache.locked(tmp_path / "file", "key"),
    ):
        pass


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_read_only_folder_is_a_storage_error(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(StorageError, match="Permission denied; set OVGEN_HOME"):
        write_whole(folder / "b", [DATA], origin="x")


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # a write beyond it fails (EFBIG)
    try:
        with pytest.raises(StorageError, match="free some space, or set OVGEN_HOME"):
            write_whole(tmp_path / "b", [DATA] * 10, origin="x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_space_is_asked_for_before(tmp_path):
    require_space(tmp_path, 1)
    with pytest.raises(StorageError, match=r"1000000000000 MB are needed"):
        require_space(tmp_path, 10**18)


def test_the_lock_is_one_for_all_processes(tmp_path):
    code = (
        "import sys, pathlib; from ovgen.hub.cache import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), 'k'):\n"
        "    print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == b"in\n"
        from filelock import FileLock, Timeout

        with pytest.raises(Timeout), FileLock(tmp_path / "locks" / "k.lock", timeout=0):
            pass
        child.stdin.close()  # it ends, and the lock with it
        with cache.locked(tmp_path, "k"):
            pass


def test_a_gguf_files_export_folder_follows_name_size_time_and_weights(tmp_path):
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    os.utime(gguf, ns=(5, 5))
    first = model_cache_folder(tmp_path / "home", gguf, "auto")
    assert first == model_cache_folder(tmp_path / "home", gguf, "auto")
    assert first.parent == tmp_path / "home" / "models"
    others = {first, model_cache_folder(tmp_path / "home", gguf, "fp16")}
    os.utime(gguf, ns=(6, 6))
    others.add(model_cache_folder(tmp_path / "home", gguf, "auto"))
    gguf.write_bytes(b"GGUF2")
    os.utime(gguf, ns=(5, 5))
    others.add(model_cache_folder(tmp_path / "home", gguf, "auto"))
    assert len(others) == 4


def test_a_downloaded_ggufs_export_folder_follows_its_source_only(tmp_path):
    gguf = tmp_path / "sources" / "0123456789abcdef" / "m.gguf"
    gguf.parent.mkdir(parents=True)
    gguf.write_bytes(b"GGUF")
    first = model_cache_folder(tmp_path, gguf, "auto")
    os.utime(gguf, ns=(6, 6))
    assert model_cache_folder(tmp_path, gguf, "auto") == first
    assert first.name == "m-0123456789abcdef-auto"


def test_the_export_folder_of_a_checkpoint_follows_all_its_files(tmp_path):
    home, folder = tmp_path / "home", tmp_path / "models--org--name" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    seen = set()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        (folder / name).write_bytes(b"{}")
        seen.add(model_cache_folder(home, folder, "auto"))
    os.utime(folder / "tokenizer.json", ns=(5, 5))
    last = model_cache_folder(home, folder, "auto")
    assert len(seen | {last}) == 5
    (folder / "README.md").write_bytes(b"no part of it")
    assert model_cache_folder(home, folder, "auto") == last
    assert last.name.startswith("org--name-")
    plain = folder.rename(tmp_path / "saved-v1.5")
    assert model_cache_folder(home, plain, "auto").name.startswith("saved-v1.5-")


def test_a_gguf_that_went_away_is_told(tmp_path):
    with pytest.raises(StorageError, match=r"cannot read .*m\.gguf"):
        model_cache_folder(tmp_path, tmp_path / "m.gguf", "auto")
