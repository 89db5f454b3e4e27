"""The matcher against a search that feeds one character at a time."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovgen.errors import ConfigError
from ovgen.text.stop_strings import StopStringMatcher

TEXT = st.text(alphabet="ab", max_size=40)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4)


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
@given(TEXT, STOPS, st.booleans(), st.lists(st.integers(0, 1000), max_size=8))
def test_equals_a_search_character_by_character(text, stops, include, bounds):
    matcher = StopStringMatcher(stops, include_stop_str_in_output=include)
    expected, stop = reference(text, stops, include)
    out = ""
    for piece in split(text, bounds):
        out += matcher.decode(piece)
        assert expected.startswith(out)  # nothing leaks, whatever comes next
    assert out + matcher.flush() == expected
    assert matcher.matched == stop


@settings(max_examples=300)
@given(TEXT, STOPS)
def test_holds_back_no_more_than_needed(text, stops):
    matcher = StopStringMatcher(stops)
    out = ""
    for end, char in enumerate(text, start=1):
        out += matcher.decode(char)
        if matcher.matched is not None:
            return
        seen = text[:end]
        starts = [n for s in stops for n in range(1, len(s)) if seen.endswith(s[:n])]
        assert len(out) == end - max(starts, default=0)


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
