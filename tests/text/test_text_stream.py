"""The stream of real tokens against a search in the text of all of them.

The tokens cut the text anywhere: bytes of a character, whole characters and merges are mixed.
"""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from ovgen.errors import ConfigError
from ovgen.text.text_stream import TextStream
from ovgen.text.tokenizer import Tokenizer, load_tokenizer

# Characters that merge in the vocabularies below, and of one to four bytes; few, so that stop
# strings overlap themselves and each other.
ALPHABETS = ("the ", "aé", "o你 👍")
TINY_LLAMA = Path(__file__).parents[1] / "fixtures" / "tiny" / "llama"
KINDS = ("tiny llama", "byte_level", "gemma", "llama2")
STAND_INS = ByteLevel(add_prefix_space=False, use_regex=False)


@pytest.fixture(scope="session")
def tokenizers(small_tokenizers) -> dict[str, Tokenizer]:
    return {"tiny llama": load_tokenizer(TINY_LLAMA), **small_tokenizers}


def byte_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token a byte."""
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
    if None in ids:  # GPT-2's printable stand-ins of the bytes
        stand_ins = "".join(piece for piece, _ in STAND_INS.pre_tokenize_str(text))
        ids = [tokenizer.token_to_id(char) for char in stand_ins]
    assert None not in ids
    return ids


def cut(sequence, bounds):
    bounds = [0, *sorted(b % (len(sequence) + 1) for b in bounds), len(sequence)]
    return [sequence[a:b] for a, b in pairwise(bounds)]


BOUNDS = st.lists(st.integers(0, 1000), max_size=8)


@st.composite
def cases(draw) -> tuple[list[tuple[str, bool]], list[str]]:
    """Pieces of a text with whether each is to be spelled in bytes, and stop strings, of which some
    are parts of the text."""
    alphabet = draw(st.sampled_from(ALPHABETS))
    text = draw(st.text(alphabet, max_size=30))
    stop = st.text(alphabet, min_size=1, max_size=6)
    if text:
        bounds = st.tuples(st.integers(0, len(text) - 1), st.integers(1, 12))
        stop |= bounds.map(lambda b: text[b[0] : sum(b)])
    pieces = [(piece, draw(st.booleans())) for piece in cut(text, draw(BOUNDS))]
    return pieces, draw(st.lists(stop, max_size=4))


def encode(tokenizer: Tokenizer, pieces: list[tuple[str, bool]]) -> list[int]:
    ids: list[int] = []
    for text, in_bytes in pieces:
        encoded = tokenizer.encode(text, add_special_tokens=False)
        ids += byte_ids(tokenizer, text) if in_bytes else encoded
    return ids


def reference(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=250, deadline=None)
@given(case=cases(), include=st.booleans(), bounds=BOUNDS, hidden=st.integers(0, 3))
def test_equals_a_search_in_the_whole_text(tokenizers, kind, case, include, bounds, hidden):
    tokenizer = tokenizers[kind]
    pieces, stops = case
    ids = encode(tokenizer, pieces)
    expected, stop = reference(tokenizer.decode(ids)[hidden:], stops, include)
    before_stop = reference(tokenizer.decode(ids)[hidden:], stops, include=False)[0]
    stream = TextStream(
        tokenizer,
        stop_strings=stops,
        include_stop_str_in_output=include,
        num_hidden_characters=hidden,
    )
    out = ""
    seen = []
    for chunk in cut(ids, bounds):
        out += stream.decode(chunk)
        seen += chunk
        if stream.matched is None:
            assert before_stop.startswith(out)  # nothing leaks, whatever comes next
        # Nothing is lost: ending here gives all there is.
        so_far = reference(tokenizer.decode(seen)[hidden:], stops, include)[0]
        assert out + stream.fork().flush() == so_far
    assert out + stream.flush() == expected
    assert stream.matched == stop


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(case=cases(), include=st.booleans(), hidden=st.integers(0, 3), data=st.data())
def test_a_fork_goes_on_by_itself(tokenizers, kind, case, include, hidden, data):
    tokenizer = tokenizers[kind]
    pieces, stops = case
    ids = encode(tokenizer, pieces)
    stream = TextStream(
        tokenizer,
        stop_strings=stops,
        include_stop_str_in_output=include,
        num_hidden_characters=hidden,
    )
    out = stream.decode(ids)
    for branch in (stream.fork(), stream):
        rest = data.draw(st.lists(st.sampled_from(ids or [5]), max_size=6))
        expected, stop = reference(tokenizer.decode(ids + rest)[hidden:], stops, include)
        assert out + branch.decode(rest) + branch.flush() == expected
        assert branch.matched == stop


def test_without_stop_strings(tokenizers):
    tokenizer = tokenizers["byte_level"]
    stream = TextStream(tokenizer)
    ids = byte_ids(tokenizer, "a你")
    assert [stream.decode([i]) for i in ids] == ["a", "", "", "你"]
    assert stream.decode(ids[:2]) == "a"
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""
    assert stream.matched is None


def test_tokens_after_a_match_have_no_text(tokenizers):
    tokenizer = tokenizers["byte_level"]
    stream = TextStream(tokenizer, stop_strings=["lazy "])
    assert stream.decode(tokenizer.encode("the lazy dog")) == "the "
    assert stream.matched == "lazy "
    assert stream.decode(tokenizer.encode(" jumps")) == stream.flush() == ""


def test_a_stop_string_may_end_with_what_was_held_back(tokenizers):
    """A run of byte tokens is certain only when it is over."""
    tokenizer = tokenizers["llama2"]
    stream = TextStream(tokenizer, stop_strings=["你"], include_stop_str_in_output=True)
    assert stream.decode(byte_ids(tokenizer, "a你")) == ""
    assert stream.flush() == "a你"
    assert stream.matched == "你"
    assert stream.flush() == ""


def test_special_tokens_are_shown_or_not(tokenizers):
    tokenizer = tokenizers["byte_level"]
    ids = [0, *tokenizer.encode("hello", add_special_tokens=False), 1]
    assert TextStream(tokenizer).decode(ids) == "hello"
    assert TextStream(tokenizer, skip_special_tokens=False).decode(ids) == "<s>hello</s>"


def test_hidden_characters_are_not_searched(tokenizers):
    tokenizer = tokenizers["byte_level"]
    ids = tokenizer.encode("don't stop don't", add_special_tokens=False)
    for length, expected in ((0, ""), (2, "n't stop "), (4, "t stop ")):
        stream = TextStream(tokenizer, stop_strings=["do"], num_hidden_characters=length)
        assert "".join(stream.decode([i]) for i in ids) == expected


def test_continuing_a_prompt_keeps_the_leading_space(tokenizers):
    tokenizer = tokenizers["llama2"]
    prompt = tokenizer.encode("hello", add_special_tokens=False)
    ids = tokenizer.encode("world", add_special_tokens=False)
    assert TextStream(tokenizer).decode(ids) == "world"
    assert TextStream(tokenizer, prompt_token_ids=prompt).decode(ids) == " world"
    stream = TextStream(tokenizer, prompt_token_ids=prompt, num_hidden_characters=3)
    assert stream.decode(ids) == "rld"


def test_a_stop_string_must_be_a_text(tokenizers):
    with pytest.raises(ConfigError, match=r"stop_strings\[1\] must be a non-empty string"):
        TextStream(tokenizers["byte_level"], stop_strings=["a", ""])
