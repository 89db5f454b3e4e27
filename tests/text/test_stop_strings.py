"""The matcher against a search that feeds one character at a time."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovgen.errors import ConfigError
from ovgen.text.stop_strings import StopStringMatcher

# Few characters, so that stop strings overlap themselves and each other; of one to four bytes.
ALPHABETS = ("ab", "aé", "a你👍")


@st.composite
def texts_and_stops(draw) -> tuple[str, list[str]]:
    """A text, and stop strings of which some are parts of it."""
    alphabet = draw(st.sampled_from(ALPHABETS))
    text = draw(st.text(alphabet, max_size=40))
    stop = st.text(alphabet, min_size=1, max_size=6)
    if text:
        bounds = st.tuples(st.integers(0, len(text) - 1), st.integers(1, 12))
        stop |= bounds.map(lambda b: text[b[0] : sum(b)])
    return text, draw(st.lists(stop, max_size=5))


BOUNDS = st.lists(st.integers(0, 1000), max_size=8)


def reference(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def split(text: str, bounds: list[int]) -> list[str]:
    bounds = [0, *sorted(b % (len(text) + 1) for b in bounds), len(text)]
    return [text[a:b] for a, b in pairwise(bounds)]


@settings(max_examples=600)
@given(texts_and_stops(), st.booleans(), BOUNDS)
def test_equals_a_search_character_by_character(text_and_stops, include, bounds):
    text, stops = text_and_stops
    matcher = StopStringMatcher(stops, include_stop_str_in_output=include)
    expected, stop = reference(text, stops, include)
    before_stop = reference(text, stops, include=False)[0]
    out = seen = ""
    for piece in split(text, bounds):
        out += matcher.decode(piece)
        seen += piece
        if matcher.matched is None:
            assert before_stop.startswith(out)  # nothing leaks, whatever comes next
            assert out + matcher.fork().flush() == seen  # nothing is lost
    assert out + matcher.flush() == expected
    assert matcher.matched == stop


@settings(max_examples=300)
@given(texts_and_stops())
def test_holds_back_no_more_than_needed(text_and_stops):
    text, stops = text_and_stops
    matcher = StopStringMatcher(stops)
    out = ""
    for end, char in enumerate(text, start=1):
        out += matcher.decode(char)
        if matcher.matched is not None:
            return
        seen = text[:end]
        starts = [n for s in stops for n in range(1, len(s)) if seen.endswith(s[:n])]
        assert len(out) == end - max(starts, default=0)


@given(texts_and_stops(), st.booleans(), st.text("aéb你", max_size=8), st.text("aéb你", max_size=8))
def test_a_fork_goes_on_by_itself(text_and_stops, include, one, other):
    text, stops = text_and_stops
    matcher = StopStringMatcher(stops, include_stop_str_in_output=include)
    out = matcher.decode(text)
    fork = matcher.fork()
    for branch, rest in ((fork, one), (matcher, other)):
        expected, stop = reference(text + rest, stops, include)
        assert out + branch.decode(rest) + branch.flush() == expected
        assert branch.matched == stop


def test_across_pieces():
    matcher = StopStringMatcher(["\n\nUser:"])
    assert matcher.decode("Paris.\n") == "Paris."
    assert matcher.decode("\nUs") == ""
    assert matcher.decode("ed it") == "\n\nUsed it"
    assert matcher.decode("\n\nUser: more") == ""
    assert matcher.matched == "\n\nUser:"
    assert matcher.decode("later") == ""
    assert matcher.flush() == ""


def test_flush_gives_the_held_text_when_nothing_matched():
    matcher = StopStringMatcher(["</s>"])
    assert matcher.decode("a </") == "a "
    assert matcher.flush() == "</"
    assert matcher.flush() == ""
    assert matcher.matched is None


def test_of_two_that_end_together_the_longer_counts():
    matcher = StopStringMatcher(["b", "aab"])
    assert matcher.decode("xaab") == "x"
    assert matcher.matched == "aab"


def test_the_stop_string_may_stay():
    matcher = StopStringMatcher(["STOP"], include_stop_str_in_output=True)
    assert matcher.decode("a ST") == "a "
    assert matcher.decode("OP b") == "STOP"


def test_a_long_row_of_almost_matches():
    matcher = StopStringMatcher(["a" * 500 + "b"])
    text = "a" * 20_000
    out = "".join(matcher.decode(char) for char in text)
    assert len(out) == len(text) - 500
    assert out + matcher.flush() == text


@pytest.mark.parametrize("stops", [[""], ["a", ""], [None], [3]])
def test_a_stop_string_must_be_a_text(stops):
    with pytest.raises(ConfigError, match=r"stop_strings\[\d\] must be a non-empty string"):
        StopStringMatcher(stops)
