"""A folder as transformers saves it, config.json and safetensors files, as a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from ovgen.errors import ClosedError, ModelFormatError, ModelNotFoundError, UnsupportedModelError
from ovgen.export.checkpoint import Tensor
from ovgen.export.mapped_file import read_json_object
from ovgen.export.quantization import quantization_config, read_quantized
from ovgen.export.safetensors import SafetensorsFile, StoredTensor

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SUFFIX = ".safetensors"
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


class SafetensorsCheckpoint:
    """An open model folder; see `ovgen.export.checkpoint.Checkpoint`.

    The tensors of quantized layers come under the name of the weight that they are,
    ``X.weight`` of shape [out, in].

    Raises ModelNotFoundError (the folder, config.json, the weights or a shard is missing),
    StorageError (not readable), ModelFormatError (damaged, or the index and the shards disagree)
    and UnsupportedModelError (weights in pickles, or quantized in a way that ovgen does not read).
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._path = Path(folder)
        if not self._path.is_dir():
            raise ModelNotFoundError(f"{self._path}: no such folder")
        self._config = read_json_object(self._path / CONFIG)
        quantization = quantization_config(self._path, self._config)
        self._files: list[SafetensorsFile] = []
        with ExitStack() as opened:
            stored = self._open_shards(opened)
            self._tensors = read_quantized(stored, quantization, self._path)
            self._opened = opened.pop_all()
        self._closed = False

    @property
    def path(self) -> Path:
        """The folder."""
        return self._path

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of config.json, not checked."""
        return self._config

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors of all shards by name. Raises ClosedError after `close`."""
        if self._closed:
            raise ClosedError(f"{self._path}: the checkpoint is closed; open it again")
        return self._tensors

    def release_pages(self) -> None:
        """Let the system drop what was read from memory."""
        for file in self._files:
            file.release_pages()

    def close(self) -> None:
        """Let go of the files; views that are still held keep theirs alive until they go."""
        self._closed = True
        self._tensors = {}
        self._files = []
        self._opened.close()

    def __enter__(self) -> SafetensorsCheckpoint:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open_shards(self, opened: ExitStack) -> dict[str, StoredTensor]:
        """The tensors of all files. A name comes once, and where the index says."""
        single, index = self._path / SINGLE, self._path / INDEX
        if single.exists():  # it comes first for transformers, too
            shards, weight_map = [SINGLE], {}
        elif index.exists():
            weight_map = _read_weight_map(index)
            shards = sorted(set(weight_map.values()))
        else:
            raise self._no_weights()
        stored: dict[str, StoredTensor] = {}
        homes: dict[str, str] = {}
        for shard in shards:
            path = self._path / shard
            if not path.exists():
                raise ModelNotFoundError(
                    f"{index} names {shard!r}, which is missing in the folder; download the model "
                    "again"
                )
            file = opened.enter_context(SafetensorsFile(path))
            self._files.append(file)
            for name, tensor in file.tensors.items():
                if name in homes:
                    raise ModelFormatError(
                        f"{self._path}: tensor {name!r:.80} is in both {homes[name]} and {shard}"
                    )
                homes[name] = shard
                stored[name] = tensor
        for name, shard in weight_map.items():
            if homes.get(name) != shard:
                found = f"is in {homes[name]}" if name in homes else "is in no shard"
                raise ModelFormatError(
                    f"{index} has tensor {name!r:.80} in {shard!r}, but it {found}; download the "
                    "model again"
                )
        return stored

    def _no_weights(self) -> Exception:
        folder = self._path
        pickles = _first(path.name for kind in _PICKLES for path in folder.glob(kind))
        if pickles:
            return UnsupportedModelError(
                f"{folder}: the weights are a pickle ({pickles}), which can run code when it is "
                f"loaded and is never read; take a repository with {SINGLE}, or convert it where "
                "you trust it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
            )
        others = _first(path.name for path in folder.glob(f"*{_SUFFIX}"))
        hint = f"; {others} is there, but neither of these" if others else ""
        return ModelNotFoundError(f"{folder}: has neither {SINGLE} nor {INDEX}{hint}")


def open_safetensors(folder: str | os.PathLike[str]) -> SafetensorsCheckpoint:
    """Open a model folder; use it as a context manager, or close it."""
    return SafetensorsCheckpoint(folder)


def _read_weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFormatError(f"{index}: 'weight_map' is missing, empty or not an object")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_file_name(shard):
            raise ModelFormatError(
                f"{index}: tensor {name!r:.80} is said to be in {shard!r:.80}, expected the name "
                f"of a file *{_SUFFIX} in the same folder"
            )
    return weight_map


def _is_file_name(name: str) -> bool:
    """Whether it names a safetensors file in the folder itself, on any system."""
    unsafe = set('/\\:\0"<>|?*')
    return name.endswith(_SUFFIX) and not name.startswith(".") and not unsafe & set(name)


def _first(names: Iterable[str]) -> str | None:
    return next(iter(sorted(names)), None)
