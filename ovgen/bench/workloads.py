"""What the engines are asked for. Prompts are token ids, the same for each engine of a round.

They differ from round to round, so that no prefix cache helps where it is not what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from ovgen.bench.figures import CHAT, THROUGHPUT, TPOT, TTFT, Figure
from ovgen.errors import ConfigError

WORKLOADS = ("latency", "throughput", "prefix", "start", "memory")
PROMPT_LENGTHS = (32, 512, 2048)
NEW_TOKENS = 64  # that TPOT is the mean of
CONCURRENCIES = (1, 4, 16, 64)
MAX_CONTEXT = 2304  # enough for all workloads
SEQUENTIAL_REQUESTS = 8  # of each concurrency, for an engine that serves one at a time
START_PROMPT = 32

_HISTORY, _TURN = 2000, 32  # tokens of a chat so far, and of a reply or a question
_INPUT, _OUTPUT = (32, 512), (16, 256)  # tokens of a request
_WARM_UP_REQUESTS = 4

Ask = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Prompts:
    """Makes random token ids that are the same in every run.

    Args:
        vocab_size: ids are below it; the lowest ones, where special tokens are, are left out.
    """

    def __init__(self, vocab_size: int) -> None:
        self._token_ids = range(min(1000, vocab_size // 4), vocab_size)

    def make(self, num_tokens: int, *key: object) -> list[int]:
        """Token ids, always the same for a key."""
        return Random(repr(key)).choices(self._token_ids, k=num_tokens)


class Case(Protocol):
    """Something to ask of every engine in turn."""

    @property
    def title(self) -> str:
        """What it is, for a line that shows progress."""
        ...

    def run(
        self, ask: Ask, prompts: Prompts, round_: int, *, has_batches: bool
    ) -> dict[Figure, float]:
        """Ask an engine, and give what came of it."""
        ...


@dataclass(frozen=True, slots=True)
class LatencyCase:
    """One prompt, and some tokens after it."""

    num_prompt: int

    @property
    def title(self) -> str:
        """What it is."""
        return f"latency, {self.num_prompt} tokens"

    def run(
        self, ask: Ask, prompts: Prompts, round_: int, *, has_batches: bool
    ) -> dict[Figure, float]:
        """TTFT and TPOT."""
        label = f"{self.num_prompt} tokens"
        answer = ask(one_request(prompts.make(self.num_prompt, self, round_), NEW_TOKENS))
        return {
            Figure(TTFT, label, "s"): answer["ttft"],
            Figure(TPOT, f"after {label}", "s"): answer["tpot"],
        }


@dataclass(frozen=True, slots=True)
class ThroughputCase:
    """Many requests of mixed lengths at once; the lengths are the same in every round."""

    concurrency: int
    context_length: int

    @property
    def title(self) -> str:
        """What it is."""
        return f"throughput, {self.concurrency} at a time"

    def run(
        self, ask: Ask, prompts: Prompts, round_: int, *, has_batches: bool
    ) -> dict[Figure, float]:
        """Output tokens a second, from the first request's arrival to the last one's end."""
        count = self.concurrency if has_batches else min(self.concurrency, SEQUENTIAL_REQUESTS)
        lengths = self.lengths()[:count]
        job = {
            "job": "many",
            "prompts": [
                prompts.make(num_input, self, round_, number)
                for number, (num_input, _) in enumerate(lengths)
            ],
            "new_tokens": [num_output for _, num_output in lengths],
        }
        answer = ask(job)
        label = f"{self.concurrency} at a time"
        return {Figure(THROUGHPUT, label, "tokens/s"): answer["tokens"] / answer["seconds"]}

    def lengths(self) -> list[tuple[int, int]]:
        """Tokens in and out of each request; a short context has shorter ones."""
        rng = Random(self.concurrency)
        half = self.context_length // 2
        return [
            (min(rng.randint(*_INPUT), half), min(rng.randint(*_OUTPUT), half))
            for _ in range(self.concurrency)
        ]


@dataclass(frozen=True, slots=True)
class PrefixCase:
    """Two turns of a chat with a long history: the second begins with all of the first."""

    num_history: int

    @property
    def title(self) -> str:
        """What it is."""
        return f"second turn of a chat of {self.num_history} tokens"

    def run(
        self, ask: Ask, prompts: Prompts, round_: int, *, has_batches: bool
    ) -> dict[Figure, float]:
        """TTFT of both turns."""
        history = prompts.make(self.num_history, self, round_)
        question = prompts.make(_TURN, self, round_, "question")
        first = ask(one_request(history, _TURN))
        second_turn = [*history, *first["token_ids"], *question]
        second = ask(one_request(second_turn, _TURN))
        return {
            Figure(CHAT, f"first turn, {len(history)} tokens", "s"): first["ttft"],
            Figure(CHAT, f"second turn, {len(second_turn)} tokens", "s"): second["ttft"],
        }


@dataclass(frozen=True, slots=True)
class Workload:
    """Cases that are measured, and those that are run before without being measured."""

    name: str
    cases: tuple[Case, ...]
    warm_up: tuple[Case, ...]


def one_request(prompt: list[int], new_tokens: int) -> dict[str, Any]:
    """The job of one request."""
    return {"job": "one", "prompt": prompt, "new_tokens": new_tokens}


def make_workloads(context_length: int) -> tuple[Workload, ...]:
    """The workloads that are asked of loaded engines, as far as they fit into a model's context.

    Raises:
        ConfigError: not even the shortest fits.
    """
    lengths = [length for length in PROMPT_LENGTHS if length + NEW_TOKENS <= context_length]
    num_history = min(_HISTORY, context_length - 3 * _TURN)
    if not lengths or num_history < 1:
        raise ConfigError(
            f"the model's context of {context_length} tokens is too short to be measured; "
            f"{PROMPT_LENGTHS[0] + 2 * NEW_TOKENS} are enough"
        )
    latency = tuple(LatencyCase(length) for length in lengths)
    throughput = tuple(ThroughputCase(number, context_length) for number in CONCURRENCIES)
    chat = (PrefixCase(num_history),)
    return (
        Workload("latency", latency, latency),
        Workload("throughput", throughput, (ThroughputCase(_WARM_UP_REQUESTS, context_length),)),
        Workload("prefix", chat, chat),
    )
