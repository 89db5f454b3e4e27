"""openvino-genai: its continuous batching, set up as its own LLMPipeline sets it up.

That is: prompts computed in one step, and a prefix cache. Runs in any interpreter that has
openvino-genai and numpy.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from ovgen.bench.worker import Answer, Clock, Settings

_NO_LIMIT = 1 << 30  # tokens in a step


class GenaiEngine:
    """One pipeline."""

    def __init__(self, settings: Settings) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = _NO_LIMIT
        scheduler.enable_prefix_caching = True
        self._pipeline = genai.ContinuousBatchingPipeline(
            settings.model, scheduler, settings.device, settings.properties
        )
        self._request_ids = itertools.count()

    def facts(self) -> Mapping[str, Any]:
        """Nothing that the bench would need."""
        return {}

    def one(self, prompt: list[int], new_tokens: int) -> Answer:
        """Serve one request, step by step."""
        clock, token_ids = Clock(), []
        handle = self._pipeline.add_request(
            next(self._request_ids), _tensor(prompt), _config(new_tokens)
        )
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            if handle.can_read():
                for output in handle.read().values():
                    token_ids += output.generated_ids
                clock.tick()
        return clock.answer([int(token) for token in token_ids])

    def many(self, prompts: list[list[int]], new_tokens: list[int]) -> int:
        """Serve requests that come at once."""
        results = self._pipeline.generate(
            [_tensor(prompt) for prompt in prompts], [_config(new) for new in new_tokens]
        )
        return sum(len(result.m_generation_ids[0]) for result in results)


def _tensor(prompt: list[int]) -> ov.Tensor:
    return ov.Tensor(np.array([prompt], dtype=np.int64))  # [1, num_tokens] int64


def _config(new_tokens: int) -> Any:
    return genai.GenerationConfig(max_new_tokens=new_tokens, ignore_eos=True, do_sample=False)


def load(settings: Settings) -> GenaiEngine:
    """The engine with its model loaded."""
    return GenaiEngine(settings)
