"""Python's part of a decoding step: the whole engine over a device that computes nothing.

For `scaling.py`: scheduling, blocks, the real PagedRunner's inputs, choosing, text. Every token is
streamed. A figure is the mean of 64 steps, two blocks of the KV cache, so that what happens once a
block is in it; medians over rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import openvino as ov
from token_loop import PENALTIES, PlainTokenizer

from ovgen.engine.engine import Engine
from ovgen.engine.output_processor import Arrival, OutputProcessor
from ovgen.engine.request_builder import Prompt
from ovgen.generation_config import GenerationConfig
from ovgen.model.kv_cache import BlockLayout, KVCache
from ovgen.model.paged_model import PagedModel
from ovgen.model.paged_runner import PagedRunner

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
BLOCK = 32  # tokens
TINY_VOCAB, VOCAB = 512, 49_152  # SmolLM2's
ALONE_STEPS = 2 * BLOCK
ALONE_CONTEXTS = tuple(128 << n for n in range(10))  # to 65,536 tokens, 2,048 blocks
ALONE_OUTPUTS = tuple(128 << n for n in range(8))
CACHE_BLOCKS = tuple(1024 << n for n in range(8))


class Port:
    """An input of the scripted device."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get_any_name(self) -> str:
        return self._name


@cache
def logits_pool(vocab_size: int) -> np.ndarray:
    """Logits of many rows: 64 MB, so that those of a step are in no cache, whatever the batch."""
    rng = np.random.default_rng(0)
    rows = (1 << 24) // vocab_size
    return 2.2 * rng.standard_normal((rows, 1, vocab_size), np.float32)


class ScriptedDevice:
    """A compiled model and its infer request at once: ready-made logits, without computing.

    Attributes:
        data: the logits of the step.
    """

    def __init__(self, num_rows: int, vocab_size: int) -> None:
        self._pool, self._num_rows, self._place = logits_pool(vocab_size), num_rows, 0
        self.data = self._pool[:num_rows]
        names = (
            "input_ids", "position_ids", "past_lens", "subsequence_begins", "block_indices",
            "block_indices_begins", "max_context_len", "sampled_tokens_indices",
        )  # fmt: skip
        self.inputs = self.model_inputs = [Port(name) for name in names]

    def create_infer_request(self) -> ScriptedDevice:
        return self

    def get_property(self, name: str) -> str:
        raise RuntimeError(f"no {name}")

    def set_tensor(self, name: str, tensor: ov.Tensor) -> None:
        pass

    def start_async(self) -> None:
        self._place += self._num_rows
        if self._place + self._num_rows > len(self._pool):
            self._place = 0
        self.data = self._pool[self._place : self._place + self._num_rows]

    def wait_for(self, milliseconds: int) -> bool:
        return True

    def get_output_tensor(self, place: int) -> ScriptedDevice:
        return self


@dataclass(frozen=True)
class Alone:
    """What the engine does without a device."""

    requests: int = 1
    context: int = 128
    rows: int = 1  # of a request
    options: tuple[tuple[str, Any], ...] = ()
    vocab: int = TINY_VOCAB
    cache_blocks: int = 1 << 15
    token_budget: int = 1 << 20
    has_newcomer: bool = False  # whose long prompt is computed meanwhile, so that batches differ

    def engine(self) -> Engine:
        """One that has all requests."""
        runner = PagedRunner(
            PagedModel(
                compiled=ScriptedDevice(self.requests * self.rows + self.has_newcomer, self.vocab),
                head=None,
                kv_cache=KVCache(
                    [BlockLayout("value_cache.0", ov.Type.u8, (1, BLOCK, 1))], self.cache_blocks
                ),
                weights=None,
                context_length=1 << 20,
                vocab_size=self.vocab,
            ),
            max_running_requests=256,
        )
        engine = Engine(
            runner,
            OutputProcessor(PlainTokenizer(), load_time=0.0),
            context_length=1 << 20,
            vocab_size=self.vocab,
            token_budget=self.token_budget,
        )
        lengths = [self.context] * self.requests
        if self.has_newcomer:
            lengths.append(self.token_budget * 2 * ALONE_STEPS)
        for number, length in enumerate(lengths):
            config = GenerationConfig(**{"max_new_tokens": 1024, **dict(self.options)}).resolve()
            arrival = Arrival(time.perf_counter(), 0.0)
            prompt = Prompt([(7 * i + i * i // 99 + number) % 500 for i in range(length)])
            engine.add_request(engine.prepare(prompt, config, arrival), config, arrival)
        return engine

    def step(self) -> float:
        """Seconds of a decoding step."""
        engine = self.engine()
        # The first ones begin the rows.
        for _ in range(6 + self.requests * self.context // self.token_budget):
            engine.step()
        return mean_step(engine)


def mean_step(engine: Engine) -> float:
    """Seconds of a step, over as many as fill some blocks."""
    started = time.perf_counter()
    for _ in range(ALONE_STEPS):
        engine.step()
    return (time.perf_counter() - started) / ALONE_STEPS


def whole_requests(number: int) -> float:
    """Seconds from the prompts to the last of 8 tokens."""
    case = Alone(requests=number, options=(("max_new_tokens", 8),))
    started = time.perf_counter()
    engine = case.engine()
    while engine.has_unfinished:
        engine.step()
    return time.perf_counter() - started


def over_output(
    lengths: tuple[int, ...], options: dict[str, Any], rounds: int
) -> dict[str, list[float]]:
    """As a series: the seconds of a step after so many tokens of output."""
    case = Alone(options=(("max_new_tokens", 1 << 15), *options.items()))
    samples: list[list[float]] = []
    for _ in range(rounds):
        engine, done = case.engine(), 0
        samples.append([])
        for length in lengths:
            for _ in range(length - done):
                engine.step()
            samples[-1].append(mean_step(engine))
            done = length + ALONE_STEPS
    seconds = [statistics.median(column) for column in zip(*samples, strict=True)]
    return {"sizes": list(lengths), "seconds": seconds}


def python_alone(is_quick: bool) -> dict[str, dict[str, list[float]]]:
    """By series: its sizes, and the seconds of a step."""
    rounds = 2 if is_quick else 5

    def cut(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return sizes[:4] if is_quick else sizes

    def measured(sizes: tuple[int, ...], call: Callable[[int], float]) -> dict[str, list[float]]:
        sizes = cut(sizes)
        seconds = [statistics.median([call(n) for _ in range(rounds)]) for n in sizes]
        return {"sizes": list(sizes), "seconds": seconds}

    def samples(number: int) -> float:
        options = {"do_sample": True, "seed": 1, "num_return_sequences": number}
        return Alone(rows=number, options=tuple(options.items())).step()

    def beams(number: int, context: int = 128) -> float:
        options = {"num_beams": number, "early_stopping": "never"}
        return Alone(context=context, rows=number, options=tuple(options.items())).step()

    penalties = tuple(PENALTIES.items())
    return {
        "requests": measured(BATCHES, lambda n: Alone(requests=n).step()),
        "requests, with argmax of 49,152 logits": measured(
            BATCHES, lambda n: Alone(requests=n, vocab=VOCAB).step()
        ),
        "requests, whole ones of 8 tokens": measured(BATCHES, whole_requests),
        "samples of one request": measured(BATCHES, samples),
        "beams of one request": measured(BATCHES[1:], beams),
        "context, 8 requests": measured(ALONE_CONTEXTS, lambda n: Alone(8, n).step()),
        "context, 8 requests beside a long prompt": measured(
            ALONE_CONTEXTS, lambda n: Alone(8, n, token_budget=1024, has_newcomer=True).step()
        ),
        "context, all penalties": measured(
            ALONE_CONTEXTS, lambda n: Alone(1, n, options=penalties).step()
        ),
        "context, 4 beams": measured(ALONE_CONTEXTS, lambda n: beams(4, n)),
        "output so far": over_output(cut(ALONE_OUTPUTS), {}, rounds),
        "output so far, all penalties": over_output(
            cut(ALONE_OUTPUTS[:6]), PENALTIES, min(rounds, 3)
        ),
        "blocks of the KV cache": measured(
            CACHE_BLOCKS, lambda n: Alone(requests=8, cache_blocks=n).step()
        ),
    }
