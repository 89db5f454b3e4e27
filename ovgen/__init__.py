"""A native-API LLM runtime for OpenVINO in pure Python: ``LLM("smollm2-135m-instruct")``.

The public names are loaded when first used, so that ``import ovgen`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovgen.async_handle import AsyncGenerationHandle
    from ovgen.async_llm import AsyncLLM
    from ovgen.engine.handle import GenerationHandle, TokenStream
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
        QueueFullError,
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
    from ovgen.session.session import Session
    from ovgen.session.stream import SessionStream

__version__ = "0.1.0"

_HOME_OF = {
    "LLM": "llm",
    "AsyncGenerationHandle": "async_handle",
    "AsyncLLM": "async_llm",
    "EngineConfig": "engine_config",
    "GenerationConfig": "generation_config",
    "GenerationHandle": "engine.handle",
    "TokenStream": "engine.handle",
    "CompletionOutput": "outputs",
    "PerplexityOutput": "outputs",
    "RequestMetrics": "outputs",
    "RequestOutput": "outputs",
    "ScoreOutput": "outputs",
    "StreamChunk": "outputs",
    "TokenLogprob": "outputs",
    "Session": "session.session",
    "SessionStream": "session.stream",
    "ClosedError": "errors",
    "ConfigError": "errors",
    "DeviceError": "errors",
    "DownloadError": "errors",
    "ModelError": "errors",
    "ModelFormatError": "errors",
    "ModelNotFoundError": "errors",
    "OvgenError": "errors",
    "QueueFullError": "errors",
    "RequestError": "errors",
    "StorageError": "errors",
    "TemplateError": "errors",
    "UnsupportedModelError": "errors",
}

__all__ = [
    "LLM",
    "AsyncGenerationHandle",
    "AsyncLLM",
    "ClosedError",
    "CompletionOutput",
    "ConfigError",
    "DeviceError",
    "DownloadError",
    "EngineConfig",
    "GenerationConfig",
    "GenerationHandle",
    "ModelError",
    "ModelFormatError",
    "ModelNotFoundError",
    "OvgenError",
    "PerplexityOutput",
    "QueueFullError",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "ScoreOutput",
    "Session",
    "SessionStream",
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
