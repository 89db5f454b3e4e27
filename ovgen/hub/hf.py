"""Downloads from the Hugging Face hub: one file, or the files of a repository that a run needs.
The hub's library does the transfer; its errors are mapped here, once.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ovgen.errors import DownloadError, ModelNotFoundError, OvgenError
from ovgen.hub.cache import STORAGE_ERRNOS, check_bytes, file_sha256, require_space, storage_error
from ovgen.hub.sources import HubSource

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

MODEL_XML, MODEL_BIN = "openvino_model.xml", "openvino_model.bin"
CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_MAX_PARTS = 1000
_SPLIT_GGUF = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_TOKENIZERS = ("tokenizer.json", "openvino_tokenizer.xml", "tokenizer.model")
_GRAPHS = ("openvino_model", "openvino_tokenizer", "openvino_detokenizer")
_TIMEOUT_SECONDS = 10.0
_TELEMETRY = "HF_HUB_DISABLE_TELEMETRY"


def find_in_user_cache(source: HubSource) -> Path | None:
    """The file or folder in the hub library's own cache, if the user has it there whole."""
    _import_hub()
    from huggingface_hub import constants, try_to_load_from_cache

    def cached(name: str) -> Path | None:
        found = try_to_load_from_cache(
            source.repo, name, cache_dir=constants.HF_HUB_CACHE, revision=source.revision
        )
        return Path(found) if isinstance(found, str) else None

    if source.file is not None:
        parts = [cached(name) for name in split_parts(source.file)]
        return cached(source.file) if all(parts) else None
    # An interrupted download leaves a folder with some of the files: look for each that is needed.
    if graph := cached(MODEL_XML):
        whole = cached(MODEL_BIN) and any(cached(name) for name in _TOKENIZERS)
        return graph.parent if whole else None
    config = cached(CONFIG)
    whole = config and cached("tokenizer.json") and has_all_shards(config.parent)
    return config.parent if config and whole else None


def has_all_shards(folder: Path) -> bool:
    """Whether a folder has the safetensors that transformers would load."""
    if (folder / SINGLE).is_file():
        return True
    try:
        weight_map = json.loads((folder / INDEX).read_bytes())["weight_map"]
        return all((folder / name).is_file() for name in set(weight_map.values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def fetch_from_hub(source: HubSource, cache_dir: Path, *, sha256: str | None = None) -> Path:
    """Download ``source`` and return its file, or the folder of its repository's snapshot.

    A repository with an IR gives that, else its checkpoint, else its one .gguf file. Raises
    ModelNotFoundError when there is no such repository or file, DownloadError when it cannot be
    had, StorageError.
    """
    _import_hub()
    from huggingface_hub import HfApi

    with _hub_errors(source), _quiet():
        info = HfApi(endpoint=_endpoint()).model_info(
            source.repo, revision=source.revision, timeout=_TIMEOUT_SECONDS, files_metadata=True
        )
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        names = split_parts(source.file) if source.file else needed_files(source, list(siblings))
        missing = [name for name in names if name not in siblings]
        if missing or info.sha is None:
            raise ModelNotFoundError(f"{source} has no file {missing}; it has {_some(siblings)}")
        cache_dir.mkdir(parents=True, exist_ok=True)
        require_space(cache_dir, _bytes_to_come(cache_dir, source, info.sha, siblings, names))
        # One after another, and not by the library's thread pool: Ctrl-C ends this at once.
        paths = [_fetch_file(source, siblings[name], info.sha, cache_dir, sha256) for name in names]
    if source.file:
        return paths[names.index(source.file)]
    return paths[0] if names[0].lower().endswith(".gguf") else paths[0].parent


def split_parts(file: str) -> list[str]:
    """All files of a split GGUF, the first one first; of any other file itself."""
    found = _SPLIT_GGUF.fullmatch(file)
    if found is None or not 0 < int(found[2]) <= int(found[3]) <= _MAX_PARTS:
        return [file]
    width = len(found[3])
    return [
        f"{found[1]}-{number:0{width}}-of-{found[3]}.gguf" for number in range(1, int(found[3]) + 1)
    ]


def needed_files(source: HubSource, names: list[str]) -> list[str]:
    """Which of a repository's files a run needs: the IR with its tokenizer, or the checkpoint with
    it, or the one .gguf, in parts or whole.
    """
    top = [name for name in names if "/" not in name]
    if MODEL_XML in top:
        return [MODEL_XML, *(name for name in top if _is_needed(name))]
    weights = _weights(top)
    if CONFIG in top and weights:
        described = (name for name in top if _is_description(name) and name != CONFIG)
        return [CONFIG, *described, *weights]
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if ggufs and sorted(ggufs) == sorted(split_parts(ggufs[0])):
        return split_parts(ggufs[0])
    if ggufs:
        raise ModelNotFoundError(
            f"{source} has {len(ggufs)} .gguf files; name one of them, as "
            f"hf:{source.repo}/{ggufs[0]} (it has {_some(ggufs)})"
        )
    raise ModelNotFoundError(
        f"{source} has neither {MODEL_XML}, {CONFIG} with {SINGLE}, nor a .gguf file "
        f"(it has {_some(names)}); name a repository with one of these"
    )


def _weights(top: list[str]) -> list[str]:
    """The safetensors of a checkpoint: one, or all shards. A repository may hold them twice."""
    if SINGLE in top:
        return [SINGLE]
    return [name for name in top if _SHARD.fullmatch(name)] if INDEX in top else []


def _is_needed(name: str) -> bool:
    stem, _, suffix = name.rpartition(".")
    if suffix in ("xml", "bin"):  # a repository may hold the checkpoint's .bin files as well
        return stem in _GRAPHS and name != MODEL_XML
    return _is_description(name)


def _is_description(name: str) -> bool:
    return name.endswith((".json", ".jinja")) or name == "tokenizer.model"


def _fetch_file(
    source: HubSource, sibling: RepoSibling, commit: str, cache_dir: Path, sha256: str | None
) -> Path:
    from huggingface_hub import hf_hub_download

    path = Path(
        hf_hub_download(
            source.repo,
            sibling.rfilename,
            revision=commit,
            cache_dir=cache_dir,
            endpoint=_endpoint(),
        )
    )
    expected = sha256 or (sibling.lfs.sha256 if sibling.lfs else None)
    origin = f"hf:{source.repo}/{sibling.rfilename}"
    try:
        got = file_sha256(path) if expected else ""
        check_bytes(origin, got, path.stat().st_size, sha256=expected, size=sibling.size)
    except DownloadError:
        path.resolve().unlink(missing_ok=True)  # what the snapshot's link points to
        path.unlink(missing_ok=True)
        raise
    return path


def _bytes_to_come(
    cache_dir: Path,
    source: HubSource,
    commit: str,
    siblings: dict[str, RepoSibling],
    names: list[str],
) -> int:
    from huggingface_hub import try_to_load_from_cache

    def here(name: str) -> bool:
        found = try_to_load_from_cache(source.repo, name, cache_dir=cache_dir, revision=commit)
        return isinstance(found, str)

    return sum(siblings[name].size or 0 for name in names if not here(name))


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _import_hub() -> None:
    """Import the library with its telemetry off: it reads this variable once, when imported."""
    before = os.environ.get(_TELEMETRY)
    os.environ[_TELEMETRY] = "1"
    try:
        import_module("huggingface_hub.constants")
    finally:
        if before is None:
            del os.environ[_TELEMETRY]
        else:
            os.environ[_TELEMETRY] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's warnings (retries, missing tokens) out of our one-line errors."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _hub_errors(source: HubSource) -> Iterator[None]:
    try:
        yield
    except OvgenError:
        raise
    # The transfer goes through several libraries (httpx or httpx2, hf_xet) with no common base.
    except Exception as exc:
        raise _mapped(source, exc) from exc


def _mapped(source: HubSource, exc: Exception) -> OvgenError:
    from huggingface_hub import errors

    page = f"{_endpoint()}/{source.repo}"
    if isinstance(exc, errors.GatedRepoError):
        return DownloadError(
            f"{source} is gated: accept its terms at {page}, "
            "then set HF_TOKEN or run `hf auth login`"
        )
    if isinstance(exc, errors.RepositoryNotFoundError):
        return ModelNotFoundError(
            f"{source}: no such repository at {page}, or it is private; "
            "check the name, or set HF_TOKEN if it is yours"
        )
    if isinstance(exc, errors.RevisionNotFoundError):
        return ModelNotFoundError(f"{source}: {page} has no revision {source.revision!r}")
    if isinstance(exc, errors.RemoteEntryNotFoundError):
        return ModelNotFoundError(f"{source}: {page} has no such file")
    if isinstance(exc, errors.HfHubHTTPError):
        return DownloadError(
            f"{source}: {_endpoint()} answered {exc.response.status_code}; try again later"
        )
    if isinstance(exc, OSError) and exc.errno in STORAGE_ERRNOS:
        return storage_error(f"write {exc.filename or source}", exc)
    root = exc.__cause__ if isinstance(exc.__cause__, Exception) else exc
    reason = (str(root).splitlines() or [""])[0] or type(root).__name__
    return DownloadError(
        f"{source}: cannot be downloaded from {_endpoint()} ({reason}); "
        "check the network, or HF_ENDPOINT for a mirror, and try again"
    )


def _some(names: list[str] | dict[str, RepoSibling]) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
    return (", ".join(shown[:8]) or "no files") + more
