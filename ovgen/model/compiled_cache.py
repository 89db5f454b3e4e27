"""Compiled models on disk, so that a second start need not compile.

OpenVINO's own CACHE_DIR keys a changed graph by hashing all of it; here the key is made of the
IR's identity and the options, and the blob is mapped without the IR being read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import openvino as ov

from ovgen.engine_config import EngineConfig
from ovgen.model.mapped_weights import MappedWeights

_VERSION = 5  # of the file's layout and of the graph passes
_MAX_AGE = 60 * 24 * 3600.0  # seconds since the last use
_HEADER_SIZE = 4096  # a page, so that the blob behind it can be mapped


class CachedModel(NamedTuple):
    """A compiled model and the mapping that its weights are in, to be kept as long as the model."""

    compiled: ov.CompiledModel
    blob: MappedWeights


class CompiledCache:
    """For a model and set of options a file of each part: a JSON header of one page, then
    OpenVINO's blob.

    A file that does not fit is passed over and written anew; a folder that cannot be written
    only costs the compilation.

    Args:
        folder: where the files are; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, core: ov.Core, xml: Path, config: EngineConfig) -> list[CachedModel] | None:
        """The compiled parts of an IR's model, or None where there are none that fit."""
        parts: list[CachedModel] = []
        path = self._path(core, xml, config)
        try:
            while True:
                part, num_parts = _read(core, _part(path, len(parts)), config.device)
                parts.append(part)
                if len(parts) >= num_parts:
                    return parts
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            return None

    def store(
        self,
        core: ov.Core,
        parts: Sequence[ov.CompiledModel],
        xml: Path,
        config: EngineConfig,
        properties: Sequence[Mapping[str, Any]],
    ) -> None:
        """Keep the compiled parts of a model, each with its properties, and drop those of this IR's
        earlier content."""
        path = self._path(core, xml, config)
        # The first comes last: with it the model is there.
        for number, (compiled, own) in reversed([*enumerate(zip(parts, properties, strict=True))]):
            try:
                blob = compiled.export_model().getbuffer()
            except RuntimeError:  # a device that cannot export
                return
            facts = {"size": len(blob), "num_parts": len(parts), "properties": dict(own)}
            header = json.dumps(facts, default=str)
            if len(header) > _HEADER_SIZE:
                return
            with contextlib.suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._write(_part(path, number), header.encode().ljust(_HEADER_SIZE), blob)
        with contextlib.suppress(OSError):
            self._prune(path)

    def _prune(self, path: Path) -> None:
        """Drop the blobs of the IR's earlier content, and what was not used for a long time: of
        models that are gone, or of another OpenVINO."""
        prefix, content = path.name.split("-")[:2]
        oldest = time.time() - _MAX_AGE
        for other in self._folder.glob("*.blob"):
            parts = other.name.split("-")
            if (parts[0] == prefix and parts[1] != content) or other.stat().st_mtime < oldest:
                other.unlink()

    def _write(self, path: Path, header: bytes, blob: memoryview) -> None:
        # Named before it is made: an interrupt in between must not leave it behind.
        partial = self._folder / f".{os.urandom(8).hex()}"
        try:
            with partial.open("xb") as file:
                file.write(header)
                file.write(blob)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, core: ov.Core, xml: Path, config: EngineConfig) -> Path:
        stats = [path.stat() for path in (xml, xml.with_suffix(".bin"))]
        options = (
            _VERSION,
            ov.get_version(),
            config.device,
            _identity(core, config.device),
            os.cpu_count(),
            config.precision,
            sorted((key, str(value)) for key, value in config.properties.items()),
        )
        content = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
        parts = (str(xml.absolute()), content, options)
        name = "-".join(hashlib.sha256(repr(part).encode()).hexdigest()[:16] for part in parts)
        return self._folder / f"{name}.blob"


def _part(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path


def _read(core: ov.Core, path: Path, device: str) -> tuple[CachedModel, int]:
    """A part, and how many its model has."""
    with path.open("rb") as file:
        header = json.loads(file.read(_HEADER_SIZE))
    if header["size"] != path.stat().st_size - _HEADER_SIZE:
        raise ValueError(f"{path} was not written whole")
    blob = MappedWeights(path, _HEADER_SIZE)
    compiled = core.import_model(blob.tensor, device, header["properties"])
    with contextlib.suppress(OSError):
        os.utime(path)  # used today
    return CachedModel(compiled, blob), int(header["num_parts"])


def _identity(core: ov.Core, device: str) -> list[str]:
    """What tells this machine's device from another's; some virtual ones cannot say."""
    identity = []
    for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES"):
        with contextlib.suppress(RuntimeError):
            identity.append(str(core.get_property(device.split(":")[0], name)))
    return identity
