"""The number formats of safetensors files as float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ovgen.export.checkpoint import Floats

Bytes = npt.NDArray[np.uint8]

# Those that numpy has, by safetensors' names.
_NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "U64": "<u8", "I32": "<i4",
    "U32": "<u4", "I16": "<i2", "U16": "<u2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
# Bytes of one value.
ITEM_SIZES = {
    **{name: np.dtype(code).itemsize for name, code in _NUMPY.items()},
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}


def to_float32(data: Bytes, dtype: str) -> Floats:
    """The values [rows, cols] of `data` [rows, bytes per row]; of F32 data a view.

    A value beyond float32's range becomes infinite.
    """
    if dtype == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        return _E4M3[data]
    if dtype == "F8_E5M2":  # the upper half of a half
        return (data.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    with np.errstate(over="ignore"):
        return data.view(_NUMPY[dtype]).astype(np.float32, copy=False)


def _e4m3_values() -> Floats:
    """All 256 values of the format without infinities (OCP FP8, E4M3): 7 bits of ones are NaN."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    values[codes & 127 == 127] = np.nan
    return np.where(codes & 128, -values, values).astype(np.float32)


_E4M3 = _e4m3_values()
