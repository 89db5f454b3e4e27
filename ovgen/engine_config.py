"""How an engine is set up: fixed for the life of an LLM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ovgen.errors import ConfigError

PRECISIONS = ("default", "exact")
ATTENTION_BACKENDS = ("auto", "paged", "stateful")
KV_PRECISIONS = ("u8", "f16", "bf16", "f32")
GOALS = ("latency", "throughput")
PROFILES = ("auto", "none", *GOALS)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Options of an engine.

    Attributes:
        device: an OpenVINO device name, for example ``CPU``, ``GPU`` or ``AUTO``.
        precision: ``default`` (the fastest the device does well) or ``exact`` (float32 inference,
            float32 KV cache, no dynamic quantization).
        properties: OpenVINO compile properties, passed on as they are.
        profile: which profile of `ovgen tune` to use: ``auto``, the one tuned last, if any fits
            this machine; ``none``; or ``latency`` or ``throughput``, which must be there. Explicit
            properties win over it, and ``exact`` uses none.
        attention_backend: ``paged`` (many requests at once, over a KV cache in blocks),
            ``stateful`` (one after the other) or ``auto``: stateful first, for it is ready sooner,
            and paged from the second request on where the model can do it.
        token_budget: most tokens in one step; longer prompts are computed in chunks of it, which
            takes less memory but more time. None: what the backend does best.
        max_num_seqs: requests that are computed at once, 256 if None.
        kv_cache_tokens: tokens that the paged KV cache holds.
        kv_cache_size: the same in GB; None for both: eight contexts of the model, or half of the
            free memory where that is less. The system gives the memory as it is first used.
        kv_cache_precision: ``u8``, ``f16``, ``bf16`` or ``f32``; None: what the device prefers.
        prefix_caching: whether a prompt's beginning is taken from where it was computed before.
        max_waiting_requests: requests that may wait for their turn; None for any number.

    Raises:
        ConfigError: an option is out of range.
    """

    device: str = "CPU"
    precision: str = "default"
    properties: Mapping[str, Any] = field(default_factory=dict)
    profile: str = "auto"
    attention_backend: str = "auto"
    token_budget: int | None = None
    max_num_seqs: int | None = None
    kv_cache_tokens: int | None = None
    kv_cache_size: float | None = None
    kv_cache_precision: str | None = None
    prefix_caching: bool = True
    max_waiting_requests: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.device, str) or not self.device:
            raise ConfigError(f"device must be an OpenVINO device name, not {self.device!r}")
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}"
            )
        if self.profile not in PROFILES:
            raise ConfigError(f"profile must be one of {', '.join(PROFILES)}, not {self.profile!r}")
        if self.precision == "exact" and self.profile in GOALS:
            raise ConfigError(
                f"profile={self.profile!r} has no effect with precision='exact': leave one out"
            )
        if not isinstance(self.properties, Mapping):
            raise ConfigError(f"properties must be a mapping, not {self.properties!r}")
        for name in self.properties:
            if not isinstance(name, str):
                raise ConfigError(f"properties must have names of OpenVINO as keys, not {name!r}")
        for name in ("token_budget", "max_num_seqs", "kv_cache_tokens", "max_waiting_requests"):
            _check_count(name, getattr(self, name))
        self._check_cache()
        object.__setattr__(self, "properties", MappingProxyType(dict(self.properties)))

    def _check_cache(self) -> None:
        if self.attention_backend not in ATTENTION_BACKENDS:
            raise ConfigError(
                f"attention_backend must be one of {', '.join(ATTENTION_BACKENDS)}, not "
                f"{self.attention_backend!r}"
            )
        if not isinstance(self.prefix_caching, bool):
            raise ConfigError(f"prefix_caching must be True or False, not {self.prefix_caching!r}")
        size = self.kv_cache_size
        if size is not None:
            is_number = isinstance(size, (int, float)) and not isinstance(size, bool)
            if not is_number or not 0 < size < math.inf:
                raise ConfigError(f"kv_cache_size must be a number of GB above 0, not {size!r}")
            if self.kv_cache_tokens is not None:
                raise ConfigError("kv_cache_size and kv_cache_tokens say the same: leave one out")
        precision = self.kv_cache_precision
        if precision is not None:
            if precision not in KV_PRECISIONS:
                raise ConfigError(
                    f"kv_cache_precision must be one of {', '.join(KV_PRECISIONS)}, not "
                    f"{precision!r}"
                )
            if self.precision == "exact":
                raise ConfigError("precision='exact' sets kv_cache_precision itself: leave it out")
            if "KV_CACHE_PRECISION" in self.properties:
                raise ConfigError(
                    "kv_cache_precision and the property KV_CACHE_PRECISION say the same: "
                    "leave one out"
                )
        if self.attention_backend == "stateful":
            for name in ("max_num_seqs", "kv_cache_tokens", "kv_cache_size"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"{name} has no effect with attention_backend='stateful': leave one out"
                    )


def _check_count(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, not {value}")
