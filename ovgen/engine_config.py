"""How an engine is set up: fixed for the life of an LLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ovgen.errors import ConfigError

PRECISIONS = ("default", "exact")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Options of an engine.

    Attributes:
        device: an OpenVINO device name, for example ``CPU``, ``GPU`` or ``AUTO``.
        precision: ``default`` (the fastest the device does well) or ``exact`` (float32 inference,
            float32 KV cache, no dynamic quantization).
        properties: OpenVINO compile properties, passed on as they are.
        token_budget: most tokens in one step; longer prompts are computed in chunks of it, which
            takes less memory but more time.

    Raises:
        ConfigError: an option is out of range.
    """

    device: str = "CPU"
    precision: str = "default"
    properties: Mapping[str, Any] = field(default_factory=dict)
    token_budget: int = 8192

    def __post_init__(self) -> None:
        if not isinstance(self.device, str) or not self.device:
            raise ConfigError(f"device must be an OpenVINO device name, not {self.device!r}")
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}"
            )
        if not isinstance(self.properties, Mapping):
            raise ConfigError(f"properties must be a mapping, not {self.properties!r}")
        for name in self.properties:
            if not isinstance(name, str):
                raise ConfigError(f"properties must have names of OpenVINO as keys, not {name!r}")
        if isinstance(self.token_budget, bool) or not isinstance(self.token_budget, int):
            raise ConfigError(f"token_budget must be a whole number, not {self.token_budget!r}")
        if self.token_budget < 1:
            raise ConfigError(f"token_budget must be at least 1, not {self.token_budget}")
        object.__setattr__(self, "properties", MappingProxyType(dict(self.properties)))
