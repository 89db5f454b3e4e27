"""Which tokens are scored: windows over a text, and continuations of a prompt."""

from __future__ import annotations

import pytest
from fakes import FakeTokenizer
from hypothesis import given
from hypothesis import strategies as st

from ovgen.errors import ConfigError, RequestError
from ovgen.scoring import ScoredText, continuation, windows


class MergingTokenizer(FakeTokenizer):
    """A token a character, but "ab" is one token."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(char) for char in text.replace("ab", "\x01")]


@given(st.integers(2, 300), st.integers(2, 60), st.data())
def test_each_token_but_the_first_is_scored_once(size: int, length: int, data):
    stride = data.draw(st.integers(1, length - 1))
    scored: list[int] = []
    for number, window in enumerate(windows(range(size), 1000, length, stride)):
        begin = number * stride
        assert window.token_ids == tuple(range(begin, min(begin + length, size)))
        assert window.num_context >= (1 if number == 0 else length - stride)
        scored += window.token_ids[window.num_context :]
    assert scored == list(range(1, size))


def test_defaults_are_the_context_and_half_of_it():
    found = list(windows(range(250), 100, None, None))
    assert [len(window.token_ids) for window in found] == [100] * 4
    assert [window.token_ids[0] for window in found] == [0, 50, 100, 150]
    assert len(next(windows(range(9000), 1 << 20, None, None)).token_ids) == 2048


@pytest.mark.parametrize(
    ("length", "stride", "message"),
    [
        (1, None, "max_length must be a whole number, 2 to 100, not 1"),
        (101, None, "max_length must be a whole number, 2 to 100, not 101"),
        (10, 10, "stride must be a whole number, 1 to 9, not 10"),
        (10, 0, "stride must be"),
        (10, 1.5, "stride must be"),
        (True, 1, "max_length must be"),
    ],
)
def test_windows_that_make_no_sense(length, stride, message: str):
    with pytest.raises(ConfigError, match=message):
        windows(range(50), 100, length, stride)


def test_one_token_has_nothing_to_predict():
    with pytest.raises(RequestError, match="two tokens at least"):
        windows([5], 100, None, None)


@pytest.mark.parametrize(
    ("prompt", "text", "token_ids", "num_context"),
    [
        ("xy", "z", b"xyz", 2),
        ([120, 121], [122], b"xyz", 2),
        ([120, 121], "z", b"xyz", 2),
        ("xy", [122], b"xyz", 2),
        ("xa", "bz", b"x\x01z", 1),  # "ab" is the continuation's
    ],
)
def test_continuations(prompt, text, token_ids: bytes, num_context: int):
    expected = ScoredText(tuple(token_ids), num_context)
    assert continuation(MergingTokenizer(), prompt, text) == expected


@pytest.mark.parametrize(("prompt", "text"), [("", "a"), ("a", ""), ([], [1]), ([1], [])])
def test_nothing_is_refused(prompt, text):
    with pytest.raises(RequestError, match="empty"):
        continuation(FakeTokenizer(), prompt, text)


def test_a_prompt_that_becomes_one_token_with_its_continuation():
    with pytest.raises(RequestError, match="'ab' is a single token"):
        continuation(MergingTokenizer(), "a", "b")
