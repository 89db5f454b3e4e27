"""Which way a folder's weights are quantized, and who reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ovgen.errors import ModelFormatError, UnsupportedModelError
from ovgen.export.awq import awq_tensors
from ovgen.export.checkpoint import Tensor
from ovgen.export.compressed_tensors import compressed_tensors
from ovgen.export.float_tensor import FloatTensor
from ovgen.export.fp8 import fp8_tensors
from ovgen.export.gptq import gptq_tensors
from ovgen.export.mapped_file import read_json_object
from ovgen.export.mxfp4 import mxfp4_tensors
from ovgen.export.safetensors import StoredTensor

Reader = Callable[[Mapping[str, StoredTensor], Mapping[str, Any], Path], dict[str, Tensor]]

_READERS: dict[str, Reader] = {
    "awq": awq_tensors,
    "compressed-tensors": compressed_tensors,
    "fbgemm_fp8": fp8_tensors,
    "fp8": fp8_tensors,
    "gptq": gptq_tensors,
    "mxfp4": mxfp4_tensors,
}
# Where early tools left what stands in config.json today.
_SIDE_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def quantization_config(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the folder says that its weights are quantized, or None.

    Raises ModelFormatError: it says so in a way that makes no sense.
    """
    found = config.get("quantization_config", config.get("compression_config"))
    if found is None:
        for name, method in _SIDE_FILES.items():
            if (folder / name).exists():
                return {"quant_method": method, **read_json_object(folder / name)}
        return None
    if not isinstance(found, dict):
        raise ModelFormatError(f"{folder}: 'quantization_config' in config.json is not an object")
    return found


def read_quantized(
    stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any] | None, folder: Path
) -> dict[str, Tensor]:
    """The tensors by the names of a model that is not quantized.

    Raises UnsupportedModelError for a method that ovgen does not read, ModelFormatError for
    tensors that do not fit the method.
    """
    if quantization is None:
        return {name: FloatTensor(tensor) for name, tensor in stored.items()}
    method = quantization.get("quant_method")
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise UnsupportedModelError(
            f"{folder}: the weights are quantized with {method!r:.80}; supported: "
            f"{', '.join(_READERS)}; take another quantization, or the model as it was "
            "before"
        )
    return reader(stored, quantization, folder)
