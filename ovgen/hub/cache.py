"""The folder that ovgen keeps its files in, and how a file gets there: whole and checked, or not
at all. ``sources/`` holds downloaded files, ``hf/`` the hub's snapshots, ``models/`` exported IRs,
``compiled/`` OpenVINO's compiled models.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ovgen.errors import DownloadError, StorageError

CHUNK = 1 << 20  # bytes read and hashed at a time
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EIO}
)
_EXPORTED = (".json", ".jinja", ".model", ".safetensors")
STORAGE_ERRNOS = _FULL | _REFUSED | {errno.ENAMETOOLONG}


def home_folder(home: Path | None = None) -> Path:
    """The cache folder: ``home``, else ``$OVGEN_HOME``, else the platform's cache folder.

    The folder is not made here. Raises StorageError when no home directory is known.
    """
    if home is not None:
        return home.expanduser().absolute()
    chosen = os.environ.get("OVGEN_HOME")
    try:
        return Path(chosen).expanduser().absolute() if chosen else _platform_cache() / "ovgen"
    except RuntimeError as exc:
        raise StorageError(
            "no home directory is known for this user; set OVGEN_HOME to a folder you may write"
        ) from exc


def _platform_cache() -> Path:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification says that a relative value is to be ignored.
    return Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"


def sources_folder(home: Path) -> Path:
    return home / "sources"


def models_folder(home: Path) -> Path:
    return home / "models"


def compiled_folder(home: Path) -> Path:
    return home / "compiled"


def model_cache_folder(home: Path, source: Path, weights: str) -> Path:
    """Where the IR exported from a GGUF file or a checkpoint's folder with these weights belongs:
    ``models/<key>``.

    A downloaded file is known by its source's key (its sha256 when the catalog has one), any other
    by name, size and modification time, and so is every file of a folder that the export reads:
    that costs a ``stat`` each and no reading.
    """
    source = source.absolute()
    name = source.stem
    if source.parent.parent == sources_folder(home).absolute():
        key = source.parent.name
    else:
        with storage_errors(f"read {source}"):
            if source.is_dir():
                name = _folder_name(source)
                files = [path for path in sorted(source.iterdir()) if path.suffix in _EXPORTED]
            else:
                files = [source]
            stats = [(path.name, path.stat()) for path in files]
        key = short_digest(
            "\0".join(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}" for file, stat in stats)
        )
    return models_folder(home) / f"{name}-{key}-{weights}"


def _folder_name(folder: Path) -> str:
    """The folder's name; of a snapshot of the hub, whose own name is a commit, the repository's."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--")
    return folder.name


def short_digest(text: str) -> str:
    """16 hex digits that stand for ``text`` in a folder's name."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Map an OSError to a StorageError that says what was being done and what to do."""
    try:
        yield
    except OSError as exc:
        raise storage_error(action, exc) from exc


def storage_error(action: str, exc: OSError) -> StorageError:
    if exc.errno in _FULL:
        advice = "free some space, or set OVGEN_HOME to a folder on another disk"
    else:
        advice = "set OVGEN_HOME to a folder that you may write"
    return StorageError(f"cannot {action}: {exc.strerror or exc}; {advice}")


def require_space(folder: Path, size: int) -> None:
    """Raise StorageError when ``folder``'s disk has fewer than ``size`` bytes free."""
    with storage_errors(f"use {folder}"):
        free = shutil.disk_usage(folder).free
    if free < size:
        raise StorageError(
            f"{folder} has {free / 1e6:.0f} MB free and {size / 1e6:.0f} MB are needed; "
            "free some space, or set OVGEN_HOME to a folder on another disk"
        )


@contextmanager
def locked(home: Path, key: str) -> Iterator[None]:
    """Hold the lock of ``key`` against other threads and processes; a dead one's is freed."""
    from filelock import FileLock, Timeout

    path = home / "locks" / f"{key}.lock"
    with storage_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if sys.stderr.isatty():
                sys.stderr.write("waiting for another process that is downloading this model\n")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_whole(
    target: Path,
    chunks: Iterable[bytes],
    *,
    origin: str,
    sha256: str | None = None,
    size: int | None = None,
) -> None:
    """Write ``chunks`` to ``target`` so that it appears complete and checked, or not at all.

    ``origin`` names the source in messages. Raises DownloadError when the bytes are not the
    expected ones, StorageError when they cannot be written.
    """
    part = target.with_name(f".{target.name}.part")
    digest, written = hashlib.sha256(), 0
    try:
        with storage_errors(f"write {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    written += len(chunk)
                    if size is not None and written > size:
                        break  # a stream that never ends must not fill the disk
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        check_bytes(origin, digest.hexdigest(), written, sha256=sha256, size=size)
        with storage_errors(f"write {target}"):
            os.replace(part, target)
    finally:
        with suppress(OSError):  # where nothing could be written, nothing can be removed
            part.unlink(missing_ok=True)


def check_bytes(
    origin: str, got_sha256: str, got_size: int, *, sha256: str | None, size: int | None
) -> None:
    """Raise DownloadError unless size and sha256 are the expected ones (None expects nothing)."""
    if size is not None and got_size != size:
        more = "more than " if got_size > size else ""
        raise DownloadError(
            f"{origin} gave {more}{min(got_size, size)} bytes, expected {size}; "
            "try again, or check the source"
        )
    if sha256 is not None and got_sha256 != sha256:
        raise DownloadError(
            f"{origin} has sha256 {got_sha256}, expected {sha256}; "
            "the file is damaged or was replaced: try again, or check the source"
        )


def read_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with storage_errors(f"read {path}"):
        for chunk in read_chunks(path):
            digest.update(chunk)
    return digest.hexdigest()
