"""optimum-intel: transformers' generate over OpenVINO, one request after another.

It computes every prompt from its beginning. Runs in any interpreter that has optimum-intel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from optimum.intel import OVModelForCausalLM
from transformers import GenerationConfig

from ovgen.bench.worker import Answer, Clock, Settings


class TokenClock:
    """A streamer that takes times; the first tokens it gets are the prompt's."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._is_prompt = True

    def put(self, token_ids: Any) -> None:
        """Called by ``generate`` with each token."""
        if not self._is_prompt:
            self.clock.tick()
        self._is_prompt = False

    def end(self) -> None:
        """Called by ``generate`` at the end."""


class OptimumEngine:
    """One model."""

    def __init__(self, settings: Settings) -> None:
        self._model = OVModelForCausalLM.from_pretrained(
            settings.model, device=settings.device, ov_config=settings.properties
        )
        # Without the model's own options, among which are its end-of-sequence tokens.
        self._model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)

    def facts(self) -> Mapping[str, Any]:
        """Nothing that the bench would need."""
        return {}

    def one(self, prompt: list[int], new_tokens: int) -> Answer:
        """Serve one request."""
        input_ids = torch.tensor([prompt])
        streamer = TokenClock()
        output = self._model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=new_tokens,
            streamer=streamer,
        )
        return streamer.clock.answer(output[0, len(prompt) :].tolist())

    def many(self, prompts: list[list[int]], new_tokens: list[int]) -> int:
        """Serve requests in turn."""
        answers = map(self.one, prompts, new_tokens)
        return sum(len(answer.token_ids) for answer in answers)


def load(settings: Settings) -> OptimumEngine:
    """The engine with its model loaded."""
    return OptimumEngine(settings)
