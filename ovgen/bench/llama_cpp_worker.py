"""llama.cpp through llama-cpp-python, on the GGUF file: one request after another.

Its prefix cache is the last request's. Runs in any interpreter that has llama-cpp-python.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_cpp import Llama

from ovgen.bench.worker import Answer, Clock, Settings, num_cores


class LlamaCppEngine:
    """One model with its context."""

    def __init__(self, settings: Settings) -> None:
        threads = num_cores()
        self._llama = Llama(
            settings.gguf,
            n_ctx=settings.num_context,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def facts(self) -> Mapping[str, Any]:
        """Nothing that the bench would need."""
        return {}

    def one(self, prompt: list[int], new_tokens: int) -> Answer:
        """Serve one request; end-of-sequence tokens are tokens like others here."""
        clock, token_ids = Clock(), []
        for token in self._llama.generate(prompt, top_k=1, temp=0.0):
            clock.tick()
            token_ids.append(int(token))
            if len(token_ids) == new_tokens:
                break
        return clock.answer(token_ids)

    def many(self, prompts: list[list[int]], new_tokens: list[int]) -> int:
        """Serve requests in turn."""
        answers = map(self.one, prompts, new_tokens)
        return sum(len(answer.token_ids) for answer in answers)


def load(settings: Settings) -> LlamaCppEngine:
    """The engine with its model loaded."""
    return LlamaCppEngine(settings)
