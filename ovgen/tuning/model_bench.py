"""Takes a model's times and its accuracy, each with an LLM that is loaded anew."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median

from ovgen.errors import RequestError, UnsupportedModelError
from ovgen.evaluation.divergence import CHUNK, WINDOW, compare, reference
from ovgen.llm import LLM
from ovgen.tuning.candidates import Properties
from ovgen.tuning.search import Sample

MAX_TEXT = 2048  # tokens of the text that are read

_NUM_CONCURRENT = 16
_PROMPT, _SHORT_PROMPT, _OUTPUT = 256, 64, 32  # tokens, where the model's context has room
_REPEATS = 3  # requests in a sample
_STRIDE = 37  # tokens from the beginning of one prompt to that of the next


class ModelBench:
    """Implements the search's Bench over a model's folder.

    Args:
        folder: with the IR.
        device: an OpenVINO device.
        text: what accuracy is measured on, and what prompts are made of.

    Raises:
        RequestError: the text has fewer than two tokens.
    """

    def __init__(self, folder: Path, device: str, text: str) -> None:
        self._folder, self._device = folder, device
        with self._load_exact() as llm:
            self._backend = llm.attention_backend
            token_ids = llm.tokenizer.encode(text)[:MAX_TEXT]
            if len(token_ids) < 2:
                raise RequestError("the text to measure accuracy on has fewer than two tokens")
            size = min(WINDOW, llm.context_length)
            windows = [token_ids[i : i + size] for i in range(0, len(token_ids), size)]
            self._windows = [window for window in windows if len(window) > 1]
            self._reference = reference(llm, self._windows)
            self._context_length = llm.context_length
        self._token_ids = token_ids

    def divergence(self, properties: Properties) -> float:
        """Mean KL divergence from float32 over the text."""
        with self._load(properties, token_budget=CHUNK) as llm:
            return compare(self._reference, llm, self._windows).mean_kl

    def sample(self, properties: Properties) -> Sample:
        """Times of one request alone, and the throughput of many at once.

        Of an engine that serves one request at a time, the throughput is that of prompt tokens.
        """
        with self._load(properties) as llm:
            output = min(_OUTPUT, self._context_length // 4)
            prompts = self._prompts(_REPEATS + 1, _PROMPT)
            llm.generate(prompts.pop(), max_new_tokens=2, ignore_eos=True)  # warms up
            metrics = [
                llm.generate(prompt, max_new_tokens=output, ignore_eos=True).metrics
                for prompt in prompts
            ]
            if self._backend == "paged":
                throughput = _concurrent(llm, self._prompts(_NUM_CONCURRENT, _SHORT_PROMPT), output)
            else:
                throughput = median(one.prefill_tokens_per_s for one in metrics)
            return Sample(
                median(one.ttft for one in metrics),
                median(one.tpot for one in metrics),
                throughput,
            )

    def _load_exact(self) -> LLM:
        """In float32, on the backend that a load of this model ends up with."""
        load = partial(
            LLM, self._folder, self._device, "exact", properties=_UNCACHED, token_budget=CHUNK,
            prefix_caching=False,
        )  # fmt: skip
        if self._device == "CPU":
            with suppress(UnsupportedModelError):
                return load(attention_backend="paged")
        return load(attention_backend="stateful")

    def _load(self, properties: Properties, token_budget: int | None = None) -> LLM:
        return LLM(
            self._folder,
            self._device,
            properties={**_UNCACHED, **properties},
            profile="none",
            attention_backend=self._backend,
            token_budget=token_budget,
            prefix_caching=False,
        )

    def _prompts(self, count: int, length: int) -> list[list[int]]:
        """Token ids from the text, which goes round; each prompt begins elsewhere."""
        size = len(self._token_ids)
        length = min(length, self._context_length // 2)
        starts = range(0, count * _STRIDE, _STRIDE)
        return [[self._token_ids[(start + i) % size] for i in range(length)] for start in starts]


# Compiled models on the disk would be of no use to anyone later on.
_UNCACHED = {"CACHE_DIR": ""}


def _concurrent(llm: LLM, prompts: Sequence[Sequence[int]], output: int) -> float:
    """Output tokens a second of requests that are served at once."""
    llm.generate(prompts, max_new_tokens=2, ignore_eos=True)  # warms up
    started = time.perf_counter()
    results = llm.generate(prompts, max_new_tokens=output, ignore_eos=True)
    seconds = time.perf_counter() - started
    return sum(len(result.token_ids) for result in results) / seconds
