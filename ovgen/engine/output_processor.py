"""All text state: from sampled tokens to chunks of a stream and finished outputs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise

from ovgen.engine.sequence import Request, Sequence
from ovgen.generation_config import GenerationConfig
from ovgen.outputs import CompletionOutput, RequestMetrics, RequestOutput, StreamChunk
from ovgen.text.detokenizer import IncrementalDetokenizer
from ovgen.text.stop_strings import StopStringMatcher
from ovgen.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a request came (time.perf_counter()), and how long its prompt took to encode."""

    time: float
    tokenization_time: float


@dataclass(slots=True)
class _TextState:
    """The text of one sequence as far as it is certain."""

    detokenizer: IncrementalDetokenizer
    stop_strings: StopStringMatcher | None
    skip_special_tokens: bool
    num_seen_tokens: int = 0
    text: str = ""
    token_times: list[float] = field(default_factory=list)
    detokenization_time: float = 0.0


@dataclass(frozen=True, slots=True)
class _Unfinished:
    """A request that is not put out, with the text of its sequences by seq_id."""

    request: Request
    arrival: Arrival
    states: dict[int, _TextState]


class OutputProcessor:
    """Holds the text of every unfinished request.

    Args:
        tokenizer: decodes token ids.
        load_time: seconds the model took to load, for the metrics.
    """

    def __init__(self, tokenizer: Tokenizer, *, load_time: float) -> None:
        self._tokenizer = tokenizer
        self._load_time = load_time
        self._unfinished: dict[int, _Unfinished] = {}  # by request_id

    def add(self, request: Request, config: GenerationConfig, arrival: Arrival) -> None:
        """Begin the text of a new request."""
        states = {sequence.seq_id: self._new_state(config) for sequence in request.sequences}
        self._unfinished[request.request_id] = _Unfinished(request, arrival, states)

    def advance(
        self, request: Request, sequence: Sequence, now: float
    ) -> tuple[StreamChunk, str | None]:
        """The text of a sequence's new tokens, and the stop string it ran into.

        Args:
            request: whose sequence it is.
            sequence: with tokens sampled at the time ``now``.
        """
        state = self._unfinished[request.request_id].states[sequence.seq_id]
        started = time.perf_counter()
        new = sequence.output_token_ids[state.num_seen_tokens :]
        state.num_seen_tokens += len(new)
        state.token_times += [now] * len(new)
        ended = sequence.finish_reason is not None
        text = state.detokenizer.decode(_without_ending(sequence, new, state))
        if ended:
            text += state.detokenizer.flush()
        matched = None
        if state.stop_strings is not None:
            text = state.stop_strings.decode(text)
            matched = state.stop_strings.matched
            if ended and matched is None:
                text += state.stop_strings.flush()
        state.text += text
        state.detokenization_time += time.perf_counter() - started
        return StreamChunk(text, tuple(new)), matched

    def finish(self, request: Request) -> RequestOutput:
        """The output of a request whose sequences have all ended; its state is dropped."""
        unfinished = self._unfinished[request.request_id]
        arrival = unfinished.arrival
        states = [unfinished.states[sequence.seq_id] for sequence in request.sequences]
        outputs = tuple(
            _completion(sequence, state)
            for sequence, state in zip(request.sequences, states, strict=True)
        )
        times = states[0].token_times
        metrics = RequestMetrics(
            num_prompt_tokens=len(request.prompt_token_ids),
            num_output_tokens=sum(len(output.token_ids) for output in outputs),
            ttft=times[0] - arrival.time if times else 0.0,
            itl=tuple(b - a for a, b in pairwise(times)),
            load_time=self._load_time,
            tokenization_time=arrival.tokenization_time,
            detokenization_time=sum(state.detokenization_time for state in states),
        )
        self.drop(request)
        return RequestOutput(request.prompt_token_ids, outputs, metrics)

    def drop(self, request: Request) -> None:
        """Forget a request, where it is known."""
        self._unfinished.pop(request.request_id, None)

    def is_known(self, request: Request) -> bool:
        """Whether a request was added, and neither finished nor dropped."""
        return request.request_id in self._unfinished

    def behind(self) -> list[tuple[Request, Sequence]]:
        """The sequences that have grown since `advance`, or have ended and are not put out."""
        return [
            (unfinished.request, sequence)
            for unfinished in self._unfinished.values()
            for sequence in unfinished.request.sequences
            if unfinished.request.is_finished
            or len(sequence.output_token_ids) > unfinished.states[sequence.seq_id].num_seen_tokens
        ]

    def _new_state(self, config: GenerationConfig) -> _TextState:
        stops = tuple(config.stop_strings)
        include = config.include_stop_str_in_output
        return _TextState(
            IncrementalDetokenizer(self._tokenizer, skip_special_tokens=config.skip_special_tokens),
            StopStringMatcher(stops, include_stop_str_in_output=include) if stops else None,
            config.skip_special_tokens,
        )


def _without_ending(sequence: Sequence, new: list[int], state: _TextState) -> list[int]:
    """The tokens that have text: not the one that ended the sequence, unless all are shown."""
    if state.skip_special_tokens and isinstance(sequence.stop_reason, int):
        return new[:-1]
    return new


def _completion(sequence: Sequence, state: _TextState) -> CompletionOutput:
    assert sequence.finish_reason is not None, "only ended sequences are put out"
    return CompletionOutput(
        text=state.text,
        token_ids=tuple(sequence.output_token_ids[: state.num_seen_tokens]),
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
    )
