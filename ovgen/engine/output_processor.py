"""All text state: from chosen tokens to chunks of a stream and finished outputs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise

from ovgen.engine.sequence import Request, Sequence
from ovgen.generation_config import GenerationConfig
from ovgen.outputs import CompletionOutput, RequestMetrics, RequestOutput, StreamChunk
from ovgen.text.text_stream import TextStream
from ovgen.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Arrival:
    """What is known of a request's prompt as it comes.

    Attributes:
        time: when it came, as time.perf_counter() gives it.
        tokenization_time: seconds its prompt took to encode.
        echo: text to put before each output.
        num_hidden_characters: how much of the output repeats the prompt's end (token healing).
    """

    time: float
    tokenization_time: float
    echo: str = ""
    num_hidden_characters: int = 0


@dataclass(slots=True)
class _TextState:
    """The text of one output as far as it is certain."""

    stream: TextStream
    pending: str  # to go out with the first chunk
    num_seen_tokens: int = 0
    text: str = ""
    has_ended: bool = False
    token_times: list[float] = field(default_factory=list)
    detokenization_time: float = 0.0

    def note_times(self, num_tokens: int, now: float) -> None:
        """The tokens up to this number came now, where they had not come before."""
        self.token_times += [now] * (num_tokens - len(self.token_times))


@dataclass(frozen=True, slots=True)
class _Unfinished:
    """A request that is not put out, with the text of its outputs by index."""

    request: Request
    config: GenerationConfig
    arrival: Arrival
    states: dict[int, _TextState] = field(default_factory=dict)


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

    def new_text(
        self, request_prompt: tuple[int, ...], config: GenerationConfig, arrival: Arrival
    ) -> TextStream:
        """The text of one of a request's sequences, from its first token on."""
        continues = bool(arrival.echo or arrival.num_hidden_characters)
        return TextStream(
            self._tokenizer,
            stop_strings=tuple(config.stop_strings),
            include_stop_str_in_output=config.include_stop_str_in_output,
            skip_special_tokens=config.skip_special_tokens,
            prompt_token_ids=request_prompt if continues else (),
            num_hidden_characters=arrival.num_hidden_characters,
        )

    def add(self, request: Request, config: GenerationConfig, arrival: Arrival) -> None:
        """Begin the text of a new request."""
        self._unfinished[request.request_id] = _Unfinished(request, config, arrival)

    def advance(
        self, request: Request, now: float
    ) -> tuple[list[StreamChunk], list[tuple[Sequence, str]]]:
        """The text of a request's new tokens, and the sequences that ran into stop strings.

        Of a beam search only what is certain: the tokens that all beams and the best finished
        hypothesis begin with, and in the end the rest of the best.

        Args:
            request: with tokens chosen at the time ``now``.
            now: time.perf_counter().
        """
        unfinished = self._unfinished[request.request_id]
        sequences = request.sequences
        if request.is_beam_search:
            best, tokens = sequences[0], sequences[0].output_token_ids
            if not request.is_finished:
                tokens = _common_beginning(sequences, self._state(unfinished, 0).num_seen_tokens)
            chunk = self._grow(unfinished, 0, best, tokens, now)
            return ([] if chunk is None else [chunk]), []
        if not (request.is_streamed or unfinished.config.stop_strings or request.is_finished):
            # Nobody reads the text before it is whole: it is made at the end, all at once.
            self._state(unfinished, 0).note_times(len(sequences[0].output_token_ids), now)
            return [], []
        chunks, stopped = [], []
        for sequence in sequences:
            chunk = self._grow(unfinished, sequence.index, sequence, sequence.output_token_ids, now)
            if chunk is not None:
                chunks.append(chunk)
            matched = unfinished.states[sequence.index].stream.matched
            # Where it has gone on since, a step broke off before it was stopped.
            if matched is not None and sequence.stop_reason != matched:
                stopped.append((sequence, matched))
        return chunks, stopped

    def finish(self, request: Request) -> RequestOutput:
        """The output of a request whose sequences have all ended; its state is dropped."""
        unfinished = self._unfinished[request.request_id]
        arrival = unfinished.arrival
        sequences = request.sequences
        if not request.is_beam_search:
            sequences = sorted(sequences, key=lambda sequence: sequence.index)
        outputs = tuple(
            self._completion(unfinished, place if request.is_beam_search else s.index, s)
            for place, s in enumerate(sequences)
        )
        states = unfinished.states
        times = states[0].token_times if 0 in states else []
        metrics = RequestMetrics(
            num_prompt_tokens=len(request.prompt_token_ids),
            num_output_tokens=sum(len(output.token_ids) for output in outputs),
            ttft=times[0] - arrival.time if times else 0.0,
            itl=tuple(b - a for a, b in pairwise(times)),
            load_time=self._load_time,
            tokenization_time=arrival.tokenization_time,
            detokenization_time=sum(state.detokenization_time for state in states.values()),
        )
        self.drop(request)
        prompt_logprobs = None
        if request.num_prompt_logprobs is not None:
            prompt_logprobs = (None, *sequences[0].prompt_logprobs)
        return RequestOutput(
            request.prompt_token_ids, outputs, metrics, request.seed, prompt_logprobs
        )

    def drop(self, request: Request) -> None:
        """Forget a request, where it is known."""
        self._unfinished.pop(request.request_id, None)

    def is_known(self, request: Request) -> bool:
        """Whether a request was added, and neither finished nor dropped."""
        return request.request_id in self._unfinished

    def behind(self) -> list[Request]:
        """The requests that have grown since `advance`, or have ended and are not put out."""
        return [u.request for u in self._unfinished.values() if _is_behind(u)]

    def _grow(
        self,
        unfinished: _Unfinished,
        index: int,
        sequence: Sequence,
        tokens: list[int],
        now: float,
    ) -> StreamChunk | None:
        """An output's news, its text taken as far as ``tokens``, the first ones of a sequence."""
        state = self._state(unfinished, index)
        new = tokens[state.num_seen_tokens :]
        if state.has_ended or not (new or sequence.finish_reason is not None):
            return None
        started = time.perf_counter()
        first, count = state.num_seen_tokens, state.num_seen_tokens + len(new)
        skips = unfinished.config.skip_special_tokens and isinstance(sequence.stop_reason, int)
        stream = state.stream.fork()  # a step may break off anywhere
        # The token that ended it has no text, unless all are shown.
        text = stream.decode(new[:-1] if skips and sequence.finish_reason else new)
        if sequence.finish_reason is not None:
            text += stream.flush()
        text = state.pending + text
        state.note_times(count, now)
        unfinished.states[index] = _TextState(
            stream,
            pending="",
            num_seen_tokens=count,
            text=state.text + text,
            has_ended=sequence.finish_reason is not None or stream.matched is not None,
            token_times=state.token_times,
            detokenization_time=state.detokenization_time + time.perf_counter() - started,
        )
        logprobs = None
        if unfinished.config.logprobs is not None:
            logprobs = tuple(sequence.logprobs[first:count])
        return StreamChunk(text, tuple(new), index=index, logprobs=logprobs)

    def _state(self, unfinished: _Unfinished, index: int) -> _TextState:
        state = unfinished.states.get(index)
        if state is None:
            arrival = unfinished.arrival
            prompt = unfinished.request.prompt_token_ids
            stream = self.new_text(prompt, unfinished.config, arrival)
            state = unfinished.states[index] = _TextState(stream, arrival.echo)
        return state

    def _completion(
        self, unfinished: _Unfinished, index: int, sequence: Sequence
    ) -> CompletionOutput:
        assert sequence.finish_reason is not None, "only ended sequences are put out"
        # Of a beam search all but the best have had no text so far.
        self._grow(unfinished, index, sequence, sequence.output_token_ids, 0.0)
        state = unfinished.states[index]
        count = state.num_seen_tokens
        has_logprobs = unfinished.config.logprobs is not None
        return CompletionOutput(
            text=state.text,
            token_ids=tuple(sequence.output_token_ids[:count]),
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
            score=sequence.score if unfinished.request.is_beam_search else None,
            logprobs=tuple(sequence.logprobs[:count]) if has_logprobs else None,
        )


def _common_beginning(sequences: list[Sequence], start: int) -> list[int]:
    """The tokens that all beams, and the best of the finished hypotheses, have in common.

    ``start``: so many are known to be.
    """
    beams = [s.output_token_ids for s in sequences if s.finish_reason is None]
    finished = [s for s in sequences if s.finish_reason is not None]
    if finished:
        beams.append(max(finished, key=lambda s: s.score or 0.0).output_token_ids)
    shortest = min(beams, key=len)
    for place in range(start, len(shortest)):
        if any(beam[place] != shortest[place] for beam in beams):
            return shortest[:place]
    return shortest


def _is_behind(unfinished: _Unfinished) -> bool:
    request, states = unfinished.request, unfinished.states
    if request.is_finished:
        return True
    if request.is_beam_search:
        return bool(request.sequences[0].output_token_ids)
    return any(
        len(sequence.output_token_ids)
        > (states[sequence.index].num_seen_tokens if sequence.index in states else 0)
        for sequence in request.sequences
    )
