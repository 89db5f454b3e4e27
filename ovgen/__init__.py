"""A native-API LLM runtime for OpenVINO in pure Python: ``LLM("smollm2-135m-instruct")``.

The public names are loaded when first used, so that ``import ovgen`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovgen.engine.service import TokenStream
    from ovgen.engine_config import EngineConfig
    from ovgen.errors import (
        ClosedError,
        ConfigError,
        DeviceError,
        DownloadError,
        ModelError,
        ModelFormatError,
        ModelNotFoundError,
        OvgenError,
        RequestError,
        StorageError,
        TemplateError,
        UnsupportedModelError,
    )
    from ovgen.generation_config import GenerationConfig
    from ovgen.llm import LLM
    from ovgen.outputs import (
        CompletionOutput,
        PerplexityOutput,
        RequestMetrics,
        RequestOutput,
        ScoreOutput,
        StreamChunk,
        TokenLogprob,
    )

__version__ = "0.1.0"

_HOME_OF = {
    "LLM": "llm",
    "EngineConfig": "engine_config",
    "GenerationConfig": "generation_config",
    "TokenStream": "engine.service",
    "CompletionOutput": "outputs",
    "PerplexityOutput": "outputs",
    "RequestMetrics": "outputs",
    "RequestOutput": "outputs",
    "ScoreOutput": "outputs",
    "StreamChunk": "outputs",
    "TokenLogprob": "outputs",
    "ClosedError": "errors",
    "ConfigError": "errors",
    "DeviceError": "errors",
    "DownloadError": "errors",
    "ModelError": "errors",
    "ModelFormatError": "errors",
    "ModelNotFoundError": "errors",
    "OvgenError": "errors",
    "RequestError": "errors",
    "StorageError": "errors",
    "TemplateError": "errors",
    "UnsupportedModelError": "errors",
}

__all__ = [
    "LLM",
    "ClosedError",
    "CompletionOutput",
    "ConfigError",
    "DeviceError",
    "DownloadError",
    "EngineConfig",
    "GenerationConfig",
    "ModelError",
    "ModelFormatError",
    "ModelNotFoundError",
    "OvgenError",
    "PerplexityOutput",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "ScoreOutput",
    "StorageError",
    "StreamChunk",
    "TemplateError",
    "TokenLogprob",
    "TokenStream",
    "UnsupportedModelError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'ovgen' has no attribute {name!r}")
    value = getattr(import_module(f"ovgen.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
