"""The frequencies of rotary position embeddings (Su et al., 2021), by transformers' rope types.

Written after transformers' modeling_rope_utils: configs name what it computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from ovgen.export.checkpoint import Floats
from ovgen.export.checkpoint_config import CheckpointConfig

DEFAULT_THETA = 10000.0


@dataclass(frozen=True, slots=True, eq=False)
class Rope:
    """What turns a position into the angles of a head.

    Attributes:
        inverse_frequencies: [rotary_dim / 2] float32; an angle is one of these by the position.
        attention_factor: cos and sin are multiplied by it.
        long_inverse_frequencies: those for a sequence longer than ``original_length``, or None.
        original_length: tokens.
    """

    inverse_frequencies: Floats
    attention_factor: float = 1.0
    long_inverse_frequencies: Floats | None = None
    original_length: int = 0

    @property
    def dim(self) -> int:
        """The features of a head that are rotated, the first ones."""
        return 2 * len(self.inverse_frequencies)


def read_rope(
    config: CheckpointConfig,
    *,
    head_dim: int | None = None,
    layer_type: str | None = None,
    theta: float = DEFAULT_THETA,
    partial: float = 1.0,
    synonyms: Mapping[str, str] | None = None,
) -> Rope:
    """The rotary embedding that a config describes, in transformers 4's form or 5's.

    Args:
        config: with ``rope_parameters``, or ``rope_theta`` and ``rope_scaling``.
        head_dim: features of a head, if not the config's.
        layer_type: the layers it is for, where the config tells them apart.
        theta: the base if the config has none.
        partial: the part of a head that is rotated if the config has none.
        synonyms: of rope types, to their usual names.

    Raises:
        UnsupportedModelError: a rope type that is not known.
        ModelFormatError: a field is missing or absurd.
    """
    fields = _parameters(config, layer_type)
    base = fields.get_float(
        "rope_theta",
        default=config.get_float("rope_theta", default=theta, min=1e-6),
        min=1e-6,
    )
    partial = fields.get_float(
        "partial_rotary_factor",
        default=config.get_float("partial_rotary_factor", default=partial, min=0, max=1),
        min=0,
        max=1,
    )
    head_dim = config.head_dim if head_dim is None else head_dim
    dim = int(head_dim * partial)
    if dim < 2 or dim % 2:
        config.fail(f"{dim} of a head's {head_dim} features are rotated, expected an even number")
    kind = rope_type(fields)
    kind = (synonyms or {}).get(kind, kind)
    if kind not in _KINDS:
        _refuse_kind(fields, kind)
    return _KINDS[kind](config, fields, base, dim)


def rope_type(fields: CheckpointConfig) -> str:
    """The name of the kind; older configs call the field ``type``."""
    return fields.get_str("rope_type", default=fields.get_str("type", default="default"))


def _refuse_kind(fields: CheckpointConfig, kind: str) -> NoReturn:
    key = "rope_type" if "rope_type" in fields else "type"
    fields.refuse(key, f"supported: {', '.join(_KINDS)}")


def _parameters(config: CheckpointConfig, layer_type: str | None) -> CheckpointConfig:
    """The object with the kind of rope and its numbers; an empty one where there is none."""
    found = config.get_object("rope_parameters") or config.get_object("rope_scaling")
    if found is not None and layer_type is not None:
        found = found.get_object(layer_type) or found
    return found or CheckpointConfig({}, config.path)


def default_rope(theta: float, head_dim: int) -> Rope:
    """``theta^(-2i/d)`` over the whole head."""
    return Rope(_inverse(theta, head_dim))


def _default(config: CheckpointConfig, fields: CheckpointConfig, base: float, dim: int) -> Rope:
    return Rope(_inverse(base, dim))


def _inverse(base: float, dim: int) -> Floats:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.asarray(1.0 / np.float32(base) ** exponents, np.float32)


def _factor(fields: CheckpointConfig) -> float:
    return fields.get_float("factor", min=1e-6)


def _linear(config: CheckpointConfig, fields: CheckpointConfig, base: float, dim: int) -> Rope:
    return Rope(_inverse(base, dim) / np.float32(_factor(fields)))


def _original_length(config: CheckpointConfig, fields: CheckpointConfig) -> int:
    # phi3 has it beside the rope's object, and there it counts.
    key = "original_max_position_embeddings"
    if key in config:
        return config.get_int(key, min=2, max=1 << 30)
    return fields.get_int(key, default=config.max_position_embeddings, min=2, max=1 << 30)


def _llama3(config: CheckpointConfig, fields: CheckpointConfig, base: float, dim: int) -> Rope:
    """Llama 3.1: long waves are stretched, short ones kept, those in between blended."""
    inverse, factor = _inverse(base, dim), np.float32(_factor(fields))
    low = fields.get_float("low_freq_factor", min=1e-6)
    high = fields.get_float("high_freq_factor", min=1e-6)
    if not low < high:
        fields.fail(f"low_freq_factor is {low}, expected less than high_freq_factor, {high}")
    length = _original_length(config, fields)
    wave = 2 * np.pi / inverse
    smooth = (length / wave - low) / (high - low)
    blended = (1 - smooth) * inverse / factor + smooth * inverse
    stretched = np.where(wave > length / low, inverse / factor, blended)
    return Rope(np.where(wave < length / high, inverse, stretched).astype(np.float32))


def _yarn(config: CheckpointConfig, fields: CheckpointConfig, base: float, dim: int) -> Rope:
    """YaRN (Peng et al., 2023)."""
    if base <= 1:
        fields.fail(f"rope_theta is {base}, expected more than 1")
    length = _original_length(config, fields)
    default = config.max_position_embeddings / length
    factor = fields.get_float("factor", default=default, min=1e-6)
    turns = [
        fields.get_float("beta_fast", default=32.0, min=1e-6),
        fields.get_float("beta_slow", default=1.0, min=1e-6),
    ]
    low, high = (
        dim * math.log(length / (count * 2 * math.pi)) / (2 * math.log(base)) for count in turns
    )
    if fields.get_bool("truncate", default=True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    inverse = _inverse(base, dim)
    blended = inverse / np.float32(factor) * ramp + inverse * (1 - ramp)
    return Rope(blended.astype(np.float32), _yarn_attention_factor(fields, factor))


def _yarn_attention_factor(fields: CheckpointConfig, factor: float) -> float:
    if "attention_factor" in fields:
        return fields.get_float("attention_factor", min=0)

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    mscale = fields.get_float("mscale", default=0.0)
    mscale_all = fields.get_float("mscale_all_dim", default=0.0)
    return scale(mscale) / scale(mscale_all) if mscale and mscale_all else scale(1.0)


def _longrope(config: CheckpointConfig, fields: CheckpointConfig, base: float, dim: int) -> Rope:
    """LongRoPE (Ding et al., 2024): a factor for every frequency, others for long sequences."""
    length = _original_length(config, fields)
    default = config.max_position_embeddings / length
    factor = fields.get_float("factor", default=default, min=1e-6)
    attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(length))
    attention = fields.get_float("attention_factor", default=attention, min=0)
    inverse = _inverse(base, dim)
    short, long = (_divided(inverse, fields, key) for key in ("short_factor", "long_factor"))
    if np.array_equal(short, long):
        return Rope(short, attention)
    return Rope(short, attention, long, length)


def _divided(inverse: Floats, fields: CheckpointConfig, key: str) -> Floats:
    factors = np.asarray(fields.get_floats(key, len(inverse)), np.float32)
    if not (factors > 0).all():
        fields.fail(f"{key} has {factors.min():g}, expected numbers above 0")
    return np.asarray(inverse / factors, np.float32)


_KINDS: dict[str, Callable[[CheckpointConfig, CheckpointConfig, float, int], Rope]] = {
    "default": _default,
    # Up to the length that the model was made for, which is as far as a request may go.
    "dynamic": _default,
    "linear": _linear,
    "llama3": _llama3,
    "longrope": _longrope,
    "yarn": _yarn,
}
