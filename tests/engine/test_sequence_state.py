"""What decoding carries along with a sequence: its tokens, and the user's streaming processors."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import EOS, FakeRunner, FakeTokenizer, Served, random_script

from ovgen.decoding.processing import Processing
from ovgen.engine.sequence import Sequence
from ovgen.engine.sequence_state import SequenceState
from ovgen.errors import RequestError
from ovgen.generation_config import GenerationConfig
from ovgen.text.text_stream import TextStream

SCRIPT = random_script(20, scale=1.5)
PROMPT = (3, 1, 4)


class Follower:
    """A streaming processor that knows all its tokens, and by them forbids one."""

    def __init__(self, seen: list, tokens: tuple[int, ...] = ()) -> None:
        self.seen, self.tokens = seen, tokens

    def start(self) -> Follower:
        return Follower(self.seen)

    def accept(self, token_ids: np.ndarray) -> None:
        assert token_ids.dtype == np.int64
        assert len(token_ids) > 0
        self.tokens += tuple(token_ids.tolist())

    def process(self, logits: np.ndarray) -> np.ndarray:
        self.seen.append(self.tokens)
        logits[forbidden(self.tokens)] = -np.inf
        return logits

    def fork(self) -> Follower:
        return Follower(self.seen, self.tokens)


def forbidden(tokens) -> int:
    return 1 + sum(place * token for place, token in enumerate(tokens)) % 19


def follow(token_ids, logits):
    """The same without state."""
    logits[forbidden(token_ids.tolist())] = -np.inf
    return logits


def processing(*processors) -> Processing:
    return Processing(
        GenerationConfig().resolve(),
        num_prompt_tokens=len(PROMPT),
        ending_ids=(),
        max_output_tokens=9,
        user_processors=processors,
    )


STRATEGIES = {
    "greedy": {},
    "samples": {"do_sample": True, "seed": 2, "num_return_sequences": 4},
    "beams": {"num_beams": 4, "num_return_sequences": 4},
    "groups": {
        "num_beams": 4,
        "num_beam_groups": 2,
        "diversity_penalty": 1.0,
        "num_return_sequences": 4,
    },
    "drawn beams": {"num_beams": 3, "do_sample": True, "seed": 2, "num_return_sequences": 3},
}


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("token_budget", [2, 1024])
def test_streaming_processors_see_exactly_the_tokens_of_their_sequence(name, token_budget: int):
    options = {"max_new_tokens": 8} | STRATEGIES[name]
    wanted = Served(FakeRunner(SCRIPT)).generate(PROMPT, processors=[follow], **options).outputs
    seen: list = []
    served = Served(FakeRunner(SCRIPT), token_budget=token_budget)
    outputs = served.generate(PROMPT, processors=[Follower(seen)], **options).outputs
    assert outputs == wanted
    assert wanted != Served(FakeRunner(SCRIPT)).generate(PROMPT, **options).outputs
    for output in outputs:  # each token was chosen after what came before it was seen
        for length in range(len(output.token_ids)):
            assert PROMPT + output.token_ids[:length] in seen


def test_requests_have_processors_of_their_own():
    seen: list = []
    served = Served(FakeRunner(SCRIPT))
    factory = Follower(seen)
    outputs = [served.generate(PROMPT, processors=[factory], max_new_tokens=4) for _ in range(2)]
    assert outputs[0].token_ids == outputs[1].token_ids
    assert seen[:4] == seen[4:]
    assert factory.tokens == ()


def test_several_processors_come_in_their_order():
    def halve(token_ids, logits):
        return logits / 2

    class Add:
        def start(self):
            return self

        def accept(self, token_ids):
            pass

        def process(self, logits):
            logits += 1
            return logits

        def fork(self):
            return self

    applied = processing(Add(), halve, Add())
    streaming = applied.start()
    assert len(streaming) == 2
    row = applied.apply(np.array(PROMPT), np.full(4, 6, np.float32), streaming)
    assert row.tolist() == [5] * 4


@pytest.mark.parametrize("method", ["accept", "process", "fork", "start"])
def test_a_streaming_processor_that_raises_ends_its_own_request(method: str):
    class Broken(Follower):
        def start(self):
            return fail() if method == "start" else Broken([], ())

        def fork(self):
            return fail() if method == "fork" else self

    def fail(*args):
        raise KeyError("of the user's")

    if method in ("accept", "process"):
        setattr(Broken, method, fail)
    served = Served(FakeRunner(SCRIPT))
    options = {"num_beams": 2, "max_new_tokens": 4}
    failing = served.add(PROMPT, processors=[Broken([])], **options)
    following = served.add(PROMPT, **options)
    with pytest.raises(RequestError, match="KeyError"):
        served.finish(failing)
    wanted = Served(FakeRunner(SCRIPT)).generate(PROMPT, **options).outputs
    assert served.finish(following).outputs == wanted
    served.assert_empty()


def test_the_state_follows_its_sequence():
    sequence = Sequence(0, PROMPT)
    state = SequenceState.of(sequence, processing(), None)
    assert SequenceState.of(sequence, processing(), None) is state
    assert state.catch_up(sequence).tolist() == [3, 1, 4]
    for token_id in range(1000):  # beyond any room that was set aside
        sequence.output_token_ids.append(token_id)
        if token_id % 7 == 0:
            tokens = state.catch_up(sequence)
            assert tokens.tolist() == [3, 1, 4, *range(token_id + 1)]
            assert tokens.dtype == np.int64
    assert state.catch_up(sequence).tolist() == state.catch_up(sequence).tolist()


def test_forks_go_their_own_ways():
    seen: list = []
    rules = processing(Follower(seen))

    def new_text() -> TextStream:
        return TextStream(FakeTokenizer(), stop_strings=["ab"])

    sequence = Sequence(0, PROMPT, [97])
    state = SequenceState.of(sequence, rules, new_text)
    state.catch_up(sequence)
    other = Sequence(1, PROMPT, [97], state=state.fork())
    sequence.output_token_ids += [98]
    other.output_token_ids += [99, 98]
    own = state.catch_up(sequence)
    assert other.state.catch_up(other).tolist() == [3, 1, 4, 97, 99, 98]
    assert own.tolist() == [3, 1, 4, 97, 98]
    assert state.streaming[0].tokens == (3, 1, 4, 97, 98)
    assert other.state.streaming[0].tokens == (3, 1, 4, 97, 99, 98)
    assert (state.text.matched, other.state.text.matched) == ("ab", None)


def test_a_state_made_late_catches_up():
    seen: list = []
    sequence = Sequence(0, PROMPT, [5, 6, EOS])
    state = SequenceState.of(sequence, processing(Follower(seen)), None)
    assert state.catch_up(sequence).tolist() == [3, 1, 4, 5, 6, EOS]
    assert state.streaming[0].tokens == (3, 1, 4, 5, 6, EOS)
