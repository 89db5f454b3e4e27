"""Safetensors files written by hand, so that they can be wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {"f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i1": "I8", "u1": "U8"}

Stored = np.ndarray | tuple[str, tuple[int, ...], bytes]


def write_raw(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """Write a file of any header, as an object or as bytes, and length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def write_safetensors(path: Path, tensors: Mapping[str, Stored]) -> Path:
    """Write a sound file of arrays, or (dtype, shape, bytes) for what numpy has not."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            dtype, shape, raw = tensor
        else:
            dtype, shape, raw = NAMES[tensor.dtype.str[1:]], tensor.shape, tensor.tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        data += raw
    return write_raw(path, header, data)


def write_folder(
    folder: Path, tensors: Mapping[str, Stored], config: Mapping[str, Any] | None = None
) -> Path:
    """Write a model folder with one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_type": "llama"} if config is None else dict(config)
    (folder / "config.json").write_text(json.dumps(content))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder
