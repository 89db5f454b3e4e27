"""Stand-ins for the device and the tokenizer: an engine of these tests in microseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ovgen.engine.batch import ScheduledBatch

VOCAB_SIZE = 128
EOS = 0
Script = Callable[[tuple[int, ...]], int]


def mixing_script(token_ids: tuple[int, ...]) -> int:
    """A next token that depends on every token before it and on their order; never EOS."""
    value = 17
    for token_id in token_ids:
        value = (value * 31 + token_id + 7) % 1_000_003
    return 1 + value % (VOCAB_SIZE - 1)


def continuation(
    token_ids: Sequence[int], length: int, script: Script = mixing_script
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

    It fails the test where a batch does not continue what was computed, and records every batch as
    (request_id, first position, tokens). ``errors`` are raised by the calls of start or wait with
    that number, counted from 0.
    """

    def __init__(
        self,
        script: Script = mixing_script,
        *,
        max_running_requests: int = 1,
        start_errors: dict[int, BaseException] | None = None,
        wait_errors: dict[int, BaseException] | None = None,
    ) -> None:
        self.max_running_requests = max_running_requests
        self.batches: list[list[tuple[int, int, tuple[int, ...]]]] = []
        self.num_waits = 0
        self.num_resets = 0
        self.is_closed = False
        self._script = script
        self._start_errors = start_errors or {}
        self._wait_errors = wait_errors or {}
        self._cache: dict[int, tuple[int, ...]] = {}  # by seq_id
        self._logits: npt.NDArray[np.float32] | None = None  # of the batch under way
        self._num_starts = 0

    def start(self, batch: ScheduledBatch) -> None:
        assert self._logits is None, "one batch at a time"
        assert not self.is_closed
        number, self._num_starts = self._num_starts, self._num_starts + 1
        if number in self._start_errors:
            raise self._start_errors[number]
        self.batches.append([])
        assert len({s.request.request_id for s in batch.scheduled}) <= self.max_running_requests
        if self.max_running_requests == 1:  # as a single infer request: only one has its state
            wanted = {s.sequence.seq_id for s in batch.scheduled}
            self._cache = {key: value for key, value in self._cache.items() if key in wanted}
        rows = []
        for item in batch.scheduled:
            sequence = item.sequence
            past = sequence.num_computed_tokens
            new = tuple(sequence.token_ids(past, past + item.num_scheduled_tokens))
            assert len(new) == item.num_scheduled_tokens > 0
            known = self._cache.get(sequence.seq_id, ()) if past else ()
            assert len(known) == past, "continues where the cache ends"
            self._cache[sequence.seq_id] = known + new
            self.batches[-1].append((item.request.request_id, past, new))
            if item.is_sampled:
                rows.append(self._row(known + new))
        self._logits = np.array(rows, np.float32).reshape(-1, VOCAB_SIZE)

    def wait(self) -> npt.NDArray[np.float32]:
        assert self._logits is not None, "a batch was begun"
        number, self.num_waits = self.num_waits, self.num_waits + 1
        if number in self._wait_errors:
            raise self._wait_errors[number]
        logits, self._logits = self._logits, None
        return logits

    def reset(self) -> None:
        self.num_resets += 1
        self._logits = None
        self._cache.clear()

    def close(self) -> None:
        self.reset()
        self.is_closed = True

    def _row(self, token_ids: tuple[int, ...]) -> npt.NDArray[np.float32]:
        row = np.zeros(VOCAB_SIZE, np.float32)
        row[self._script(token_ids)] = 1.0
        return row


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
