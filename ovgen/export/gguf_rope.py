"""What a GGUF file says of its rotary embedding, in transformers' terms."""

from __future__ import annotations

from typing import Any

import numpy as np

from ovgen.export.gguf import GGUFFile
from ovgen.export.gguf_metadata import Metadata
from ovgen.export.gguf_quants import dequantize

# Tensors with a divisor for each rotary frequency, which transformers has in the config.
ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")


def rope_scaling(metadata: Metadata) -> dict[str, Any] | None:
    """The config's ``rope_scaling``, or None.

    Factors that the file has for each frequency are longrope's here, whatever they were made by.
    """
    factors = [_rope_factors(metadata.gguf, name) for name in ROPE_FACTORS]
    one_for_all, short, long = factors
    length = metadata.integer("rope.scaling.original_context_length")
    if one_for_all is not None or (short is not None and long is not None):
        return {
            "rope_type": "longrope",
            "short_factor": one_for_all or short,
            "long_factor": one_for_all or long,
            "original_max_position_embeddings": length or metadata.size("context_length"),
            "attention_factor": metadata.number("rope.scaling.attn_factor") or 1.0,
        }
    kind = metadata.text("rope.scaling.type") or "none"
    factor = metadata.number("rope.scaling.factor") or 1.0
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor} if factor != 1.0 else None
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": length,
            "beta_fast": metadata.number("rope.scaling.yarn_beta_fast"),
            "beta_slow": metadata.number("rope.scaling.yarn_beta_slow"),
        }
    if kind != "none":
        metadata.refuse("rope.scaling.type", kind, "none, linear, yarn")
    return None


def _rope_factors(gguf: GGUFFile, name: str) -> list[float] | None:
    tensor = gguf.tensors.get(name)
    if tensor is None:
        return None
    return [float(x) for x in dequantize(tensor.data, tensor.type).reshape(-1).astype(np.float64)]
