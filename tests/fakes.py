"""Stand-ins for the device and the tokenizer: an engine of these tests in microseconds."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import cache
from itertools import accumulate, groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from ovgen.engine.batch import ScheduledBatch, ScheduledSequence
from ovgen.engine.engine import Engine
from ovgen.engine.output_processor import Arrival, OutputProcessor
from ovgen.engine.request_builder import Prompt
from ovgen.engine.sequence import Request
from ovgen.errors import OvgenError
from ovgen.generation_config import GenerationConfig
from ovgen.outputs import RequestOutput, StreamChunk

CONTEXT = 64
VOCAB_SIZE = 128
EOS = 0

# The next token, or the logits of the first tokens of the vocabulary; the others are impossible.
Script = Callable[[tuple[int, ...]], int | npt.NDArray[np.float32]]

Rows = list[tuple[ScheduledSequence, tuple[int, ...]]]  # each with all its tokens


def mixing_script(token_ids: tuple[int, ...]) -> int:
    """A next token that depends on every token before it and on their order; never EOS."""
    value = 17
    for token_id in token_ids:
        value = (value * 31 + token_id + 7) % 1_000_003
    return 1 + value % (VOCAB_SIZE - 1)


def random_script(size: int, seed: int = 0, scale: float = 1.0) -> Script:
    """Normal logits of the first ``size`` tokens, which depend on every token before."""

    @cache
    def script(token_ids: tuple[int, ...]) -> npt.NDArray[np.float32]:
        rng = np.random.default_rng([seed, size, *token_ids])
        return (scale * rng.standard_normal(size)).astype(np.float32)

    return script


def continuation(
    token_ids: Sequence[int],
    length: int,
    script: Callable[[tuple[int, ...]], int] = mixing_script,
) -> list[int]:
    """What the script makes of a prompt: the oracle of the engine's tests."""
    tokens = tuple(token_ids)
    for _ in range(length):
        tokens += (script(tokens),)
    return list(tokens[len(token_ids) :])


def spelling_script(*outputs: str) -> Script:
    """Answers the n-th prompt token with the n-th text, one character a token, then EOS."""

    def script(token_ids: tuple[int, ...]) -> int:
        output = outputs[token_ids[0] - 1]
        written = len(token_ids) - 1  # prompts are a single token here
        return ord(output[written]) if written < len(output) else EOS

    return script


class FakeRunner:
    """Implements ModelRunner: logits by a script, over a "KV cache" of the tokens it was given.

    The cache is that of a stateful graph: a request's rows take as many tokens in each step, and
    have all their ends in the same column; one that begins late, or is forked, goes on from there.
    Fails the test where a batch does not continue what was computed, and records every batch as
    rows of (request_id, first position, tokens). ``start_errors`` and ``wait_errors`` are raised by
    the calls with that number, counted from 0; the waits in ``not_ready`` give None.
    """

    def __init__(
        self,
        script: Script = mixing_script,
        *,
        max_running_requests: int = 1,
        start_errors: dict[int, BaseException] | None = None,
        wait_errors: dict[int, BaseException] | None = None,
        not_ready: Collection[int] = (),
    ) -> None:
        self.max_running_requests = max_running_requests
        self.has_padding = True
        self.num_blocks = self.block_size = 0
        self.batches: list[list[tuple[int, int, tuple[int, ...]]]] = []
        self.num_logits: list[int] = []  # rows of logits that each batch asked for
        self.timeouts: list[float] = []  # of each wait
        self.num_starts = 0
        self.num_waits = 0
        self.num_resets = 0
        self.is_closed = False
        self.not_ready = not_ready
        self._script = script
        self._start_errors = start_errors or {}
        self._wait_errors = wait_errors or {}
        self._caches: dict[int, _Cache] = {}  # by request_id
        self._logits: npt.NDArray[np.float32] | None = None  # of the batch under way

    @property
    def num_computed(self) -> int:
        """Tokens in all batches so far."""
        return sum(len(tokens) for batch in self.batches for _, _, tokens in batch)

    def start(self, batch: ScheduledBatch) -> None:
        assert self._logits is None, "one batch at a time"
        assert not self.is_closed
        number, self.num_starts = self.num_starts, self.num_starts + 1
        if number in self._start_errors:
            raise self._start_errors[number]
        requests = [request for request, _ in groupby(batch.scheduled, key=lambda s: s.request)]
        assert 0 < len(requests) <= self.max_running_requests
        assert len(set(map(id, requests))) == len(requests), "a request's rows come together"
        self.batches.append([])
        rows: list[npt.NDArray[np.float32]] = []
        for item, tokens in self._computed(batch):
            past = item.sequence.num_computed_tokens
            self.batches[-1].append((item.request.request_id, past, tokens[past:]))
            assert 0 <= item.num_logits <= item.num_scheduled_tokens
            ends = range(len(tokens) - item.num_logits + 1, len(tokens) + 1)
            rows += [self._row(tokens[:end]) for end in ends]
        assert len(rows) == batch.num_logits
        self.num_logits.append(len(rows))
        self._logits = np.array(rows, np.float32).reshape(-1, VOCAB_SIZE)

    def _computed(self, batch: ScheduledBatch) -> Rows:
        """The rows of a batch, each with all its tokens after it."""
        by_request = [(r, list(g)) for r, g in groupby(batch.scheduled, key=lambda s: s.request)]
        if self.max_running_requests == 1:  # as a single infer request: only one has its state
            wanted = {request.request_id for request, _ in by_request}
            self._caches = {key: c for key, c in self._caches.items() if key in wanted}
        rows: Rows = []
        for request, items in by_request:
            rows += self._caches.setdefault(request.request_id, _Cache()).grown(items)
        return rows

    def wait(self, timeout: float) -> npt.NDArray[np.float32] | None:
        assert self._logits is not None, "a batch was begun"
        assert 0 <= timeout <= 0.05, "looks up now and then"
        self.timeouts.append(timeout)
        number, self.num_waits = self.num_waits, self.num_waits + 1
        if number in self._wait_errors:
            raise self._wait_errors[number]
        if number in self.not_ready:
            return None
        logits, self._logits = self._logits, None
        return logits

    def reset(self) -> None:
        self.num_resets += 1
        self._logits = None
        self._caches.clear()

    def close(self) -> None:
        self.reset()
        self.is_closed = True

    def _row(self, token_ids: tuple[int, ...]) -> npt.NDArray[np.float32]:
        answer = self._script(token_ids)
        if isinstance(answer, int):
            row = np.zeros(VOCAB_SIZE, np.float32)
            row[answer] = 1.0
        else:
            row = np.full(VOCAB_SIZE, -np.inf, np.float32)
            row[: len(answer)] = answer
        return row


class _Cache:
    """The rows of one request, which share their columns: their last tokens are in the same one."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, tuple[int, ...]]] = {}  # by seq_id: padding, tokens
        self._num_columns = 0

    def grown(self, items: list[ScheduledSequence]) -> Rows:
        """All tokens of each row after a step; from here on the rows are those of the batch."""
        [count] = {item.num_scheduled_tokens for item in items}  # in lockstep
        rows = {}
        for item in items:
            sequence = item.sequence
            past = sequence.num_computed_tokens
            padding, known = self._num_columns, ()
            if past:
                key = sequence.seq_id if sequence.seq_id in self._rows else sequence.parent_id
                assert key is not None, "a sequence goes on from its own tokens"
                padding, known = self._rows[key]
            assert padding + past == self._num_columns, "all rows end in the same column"
            assert known == tuple(sequence.token_ids(0, past)), "continues where the cache ends"
            new = tuple(sequence.token_ids(past, past + count))
            assert len(new) == count > 0
            assert sequence.seq_id not in rows, "a row a sequence"
            rows[sequence.seq_id] = padding, known + new
        self._rows = rows
        self._num_columns += count
        return [(item, rows[item.sequence.seq_id][1]) for item in items]


class FakePagedRunner(FakeRunner):
    """A FakeRunner whose "KV cache" is in blocks, as PagedAttention has it.

    A slot holds what a key and a value depend on: its token and all before it. Whatever is read is
    checked, so that a wrong share, a missed copy or a stale hit fails the test.
    """

    def __init__(
        self,
        script: Script = mixing_script,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_running_requests: int = 8,
        **options,
    ) -> None:
        super().__init__(script, max_running_requests=max_running_requests, **options)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.block_store = None
        self.num_copies = 0
        self._slots: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]

    def _computed(self, batch: ScheduledBatch) -> Rows:
        assert all(a != b for a, b in batch.block_copies)
        assert len({b for _, b in batch.block_copies}) == len(batch.block_copies)
        for source, target in batch.block_copies:
            self.num_copies += 1
            self._slots[target] = self._slots[source].copy()
        size = self.block_size
        holders = Counter(b for item in batch.scheduled for b in set(item.sequence.block_table))
        rows = []
        for item in batch.scheduled:
            sequence, count = item.sequence, item.num_scheduled_tokens
            past, end = sequence.num_computed_tokens, sequence.num_computed_tokens + count
            tokens = tuple(sequence.token_ids(0, end))
            assert len(tokens) == end > past
            table = sequence.block_table
            assert len(set(table)) == len(table) >= -(-end // size), "blocks for all its tokens"
            contents = list(accumulate(tokens, lambda before, token: hash((before, token))))
            for place in range(past, end):
                assert holders[table[place // size]] == 1, "nobody else's block is written"
                self._slots[table[place // size]][place % size] = contents[place]
            rows.append((item, tokens, contents))
        for item, _, contents in rows:
            cached = [slot for block in item.sequence.block_table for slot in self._slots[block]]
            assert cached[: len(contents)] == contents, "reads what was computed of it"
        return [(item, tokens) for item, tokens, _ in rows]


class FakeTokenizer:
    """A token is an ASCII character; id 0 is the special end-of-sequence token."""

    vocab_size = VOCAB_SIZE
    special_ids = frozenset({EOS})
    bos_token = None
    eos_token = "\0"

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(char) for char in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        shown = (t for t in token_ids if not (skip_special_tokens and t in self.special_ids))
        return "".join("<eos>" if t == EOS else chr(t) for t in shown)

    def token_to_id(self, token: str) -> int | None:
        return EOS if token == "<eos>" else ord(token)

    def id_to_token(self, token_id: int) -> str | None:
        return "<eos>" if token_id == EOS else chr(token_id)


class Served:
    """An engine with its parts in reach, and what it has put out of each request."""

    def __init__(self, runner: FakeRunner | None = None, **options: int | bool) -> None:
        self.runner = runner or FakeRunner()
        self.processor = OutputProcessor(FakeTokenizer(), load_time=0.0)
        self.engine = Engine(
            self.runner,
            self.processor,
            **(
                {"context_length": CONTEXT, "vocab_size": VOCAB_SIZE, "token_budget": 1024}
                | options
            ),
        )
        self.chunks: dict[int, list[StreamChunk]] = {}
        self.errors: dict[int, OvgenError] = {}

    def add(
        self,
        prompt: Sequence[int] | Prompt,
        *,
        processors: Sequence[Any] = (),
        echo: str = "",
        num_hidden_characters: int = 0,
        **options,
    ) -> Request:
        config = GenerationConfig(**({"eos_token_id": EOS} | options))
        arrival = Arrival(time.perf_counter(), 0.0, echo, num_hidden_characters)
        if not isinstance(prompt, Prompt):
            prompt = Prompt(prompt, user_processors=processors)
        request = self.engine.prepare(prompt, config, arrival)
        return self._added(request, config, arrival)

    def add_scores(self, texts: Sequence[Sequence[int]], num_context: Sequence[int]) -> Request:
        request = self.engine.prepare_scores(texts, num_context)
        return self._added(request, GenerationConfig(), Arrival(time.perf_counter(), 0.0))

    def _added(self, request: Request, config: GenerationConfig, arrival: Arrival) -> Request:
        self.engine.add_request(request, config, arrival)
        self.chunks[request.request_id] = []
        return request

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.step()

    def step(self) -> None:
        for request, chunk in self.engine.step():
            mail = self.chunks[request.request_id]
            assert not (mail and mail[-1].output), "nothing comes after the last chunk"
            assert request.request_id not in self.errors, "nothing comes after an error"
            if isinstance(chunk, OvgenError):
                self.errors[request.request_id] = chunk
            else:
                mail.append(chunk)

    def output(self, request: Request) -> RequestOutput | None:
        """What the request was put out with, None while it was not."""
        mail = self.chunks[request.request_id]
        return mail[-1].output if mail else None

    def finish(self, request: Request) -> RequestOutput:
        """Step until the request is put out, at most 1000 times."""
        for _ in range(1000):
            if self.output(request) or request.request_id in self.errors:
                break
            self.step()
        if request.request_id in self.errors:
            raise self.errors[request.request_id]
        output = self.output(request)
        assert output is not None, "the request ended"
        streamed = 1 if request.is_beam_search else len(output.outputs)
        for index, completion in enumerate(output.outputs[:streamed]):
            chunks = [c for c in self.chunks[request.request_id] if c.index == index]
            assert "".join(chunk.text for chunk in chunks) == completion.text
            assert sum((chunk.token_ids for chunk in chunks), ()) == completion.token_ids
        return output

    def generate(self, prompt: Sequence[int] | Prompt, **options) -> RequestOutput:
        return self.finish(self.add(prompt, **options))

    def assert_empty(self) -> None:
        scheduler = self.engine._scheduler
        assert not scheduler.has_unfinished
        assert self.engine._updated == self.engine._failed == []
        assert [len(v) for v in vars(self.processor).values() if isinstance(v, dict)] == [0]


def interrupt_at_line(number: int, files: Collection[str] = ()):
    """A trace function that raises KeyboardInterrupt at the n-th line run in ovgen/engine.

    ``files``: those whose lines count, if not all.
    """
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        folder, name = os.path.split(frame.f_code.co_filename)
        if not folder.endswith("engine") or (files and name not in files):
            return None
        if event == "line":
            lines += 1
            if lines == number:
                raise KeyboardInterrupt
        return trace

    return trace
