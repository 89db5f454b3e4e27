"""The properties that a graph is compiled with, and the rules by which they are chosen."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import openvino as ov

from ovgen.engine_config import EngineConfig
from ovgen.errors import ConfigError
from ovgen.model.cpu import has_amx, has_bf16
from ovgen.model.graph_passes import has_integer_weights, weight_group

_PRECISION = "INFERENCE_PRECISION_HINT"
KV_CACHE = "KV_CACHE_PRECISION"
_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_EXACT = {_PRECISION: "f32", KV_CACHE: "f32", _GROUP: "0"}
_DYNAMIC_GROUP = 64


def load_properties(core: ov.Core, config: EngineConfig, model: ov.Model) -> dict[str, Any]:
    """The compile properties: the precision's, and over them the caller's own.

    On x86 weights of integers are multiplied by activations that are quantized as well, everything
    else is computed in bfloat16 where the processor multiplies it, and in float32 where not.
    Matrix units (AMX) are left to what OpenVINO does with them.
    """
    if config.precision == "exact":
        supported = core.get_property(config.device, "SUPPORTED_PROPERTIES")
        exact = {key: value for key, value in _EXACT.items() if key in supported}
        return {**exact, **config.properties}
    if _PRECISION in config.properties or not is_plain_x86(core, config):
        return dict(config.properties)
    # Weights that are floats are there for the sake of their precision.
    is_bf16 = has_integer_weights(model) and has_bf16(core)
    return {
        _PRECISION: "bf16" if is_bf16 else "f32",
        _GROUP: _quantization_group(model),
        **config.properties,
    }


def is_plain_x86(core: ov.Core, config: EngineConfig) -> bool:
    """Whether on an x86 CPU without matrix units (AMX), for which the plugin has larger fusions
    that know separate projections only."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return config.device == "CPU" and is_x86 and not has_amx(core)


def _quantization_group(model: ov.Model) -> str:
    """One larger than the weights' own would switch quantization off."""
    return str(min(weight_group(model) or _DYNAMIC_GROUP, _DYNAMIC_GROUP))


def with_kv_precision(config: EngineConfig) -> EngineConfig:
    """The config with its KV cache's precision as OpenVINO's property."""
    if config.kv_cache_precision is None:
        return config
    properties = {**config.properties, KV_CACHE: config.kv_cache_precision}
    return replace(config, properties=properties, kv_cache_precision=None)


def has_own_head(config: EngineConfig, properties: Mapping[str, Any]) -> bool:
    """Whether logits would come in bfloat16, if the head were in one graph with the rest."""
    return config.device == "CPU" and properties.get(_PRECISION) in ("bf16", ov.Type.bf16)


def head_properties(
    config: EngineConfig, properties: Mapping[str, Any], head: ov.Model
) -> dict[str, Any]:
    """Of a head on its own, whose body has these."""
    group = {_GROUP: _quantization_group(head)} if _GROUP in properties else {}
    return {**properties, **group, **config.properties, _PRECISION: "f32"}


def refuse_contradictions(config: EngineConfig) -> None:
    """Raise a ConfigError where a property says what ``precision="exact"`` says."""
    clash = sorted(set(_EXACT) & set(config.properties))
    if config.precision == "exact" and clash:
        raise ConfigError(
            f"precision='exact' sets {clash[0]} itself; leave it out of the properties"
        )
