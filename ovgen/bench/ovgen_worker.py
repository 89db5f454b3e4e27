"""ovgen itself, through its front door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ovgen.bench.worker import Answer, Settings
from ovgen.llm import LLM

# Plain greedy decoding, whatever the model's own generation_config.json says: as the peers do it.
_GREEDY: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0, "ignore_eos": True}


class OvgenEngine:
    """One LLM."""

    def __init__(self, settings: Settings) -> None:
        self._llm = LLM(settings.model, settings.device, properties=settings.properties)

    def facts(self) -> Mapping[str, Any]:
        """What prompts may be made of and how long they may be, and what serves them.

        The second request has another runner compiled: no peer is measured meanwhile.
        """
        self._llm._upgrade.close()
        return {
            "attention": self._llm.attention_backend,
            "vocab_size": self._llm.tokenizer.vocab_size,
            "context_length": self._llm.context_length,
        }

    def one(self, prompt: list[int], new_tokens: int) -> Answer:
        """Serve one request; the times are the engine's own."""
        output = self._llm.generate(prompt, max_new_tokens=new_tokens, **_GREEDY)
        return Answer(output.metrics.ttft, output.metrics.tpot, list(output.token_ids))

    def many(self, prompts: list[list[int]], new_tokens: list[int]) -> int:
        """Serve requests that come at once."""
        handles = [
            self._llm.submit(prompt, max_new_tokens=new, **_GREEDY)
            for prompt, new in zip(prompts, new_tokens, strict=True)
        ]
        return sum(len(handle.result().token_ids) for handle in handles)


def load(settings: Settings) -> OvgenEngine:
    """The engine with its model loaded."""
    return OvgenEngine(settings)
