"""Who serves sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ovgen.decoding.processing import UserProcessor
from ovgen.engine.handle import GenerationHandle
from ovgen.engine.mailbox import Submission
from ovgen.engine.service import EngineService
from ovgen.generation_config import GenerationConfig
from ovgen.text.tokenizer import Tokenizer

Message = Mapping[str, Any]


class SessionHost(Protocol):
    """What a session needs of its LLM."""

    folder: Path
    context_length: int
    vocab_size: int
    tokenizer: Tokenizer
    _service: EngineService

    def _config(
        self, config: GenerationConfig | None, options: Mapping[str, Any]
    ) -> GenerationConfig: ...

    def _prepare(
        self,
        prompt: str | Sequence[int],
        config: GenerationConfig,
        logits_processors: Sequence[UserProcessor],
        started: float | None = None,
    ) -> Submission: ...

    def _prepare_chat(
        self,
        messages: Sequence[Message],
        config: GenerationConfig,
        logits_processors: Sequence[UserProcessor],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        template_args: Mapping[str, Any] | None,
    ) -> Submission: ...

    def _submit(self, prepared: Submission) -> GenerationHandle: ...
