"""Which tokens of a text are scored, and which are only context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ovgen.errors import ConfigError, RequestError
from ovgen.text.tokenizer import Tokenizer

# A longer window costs more than it tells: attention is quadratic in it.
_DEFAULT_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A text in tokens, the first ``num_context`` (one at least) of which are not scored."""

    token_ids: tuple[int, ...]
    num_context: int


def continuation(
    tokenizer: Tokenizer, prompt: str | Sequence[int], text: str | Sequence[int]
) -> ScoredText:
    """A prompt with its continuation, to score the latter.

    Strings are tokenized together; what is scored begins with the first token that the prompt by
    itself does not have.

    Raises:
        RequestError: one of them is empty, or both together are one token.
    """
    if not len(prompt):
        raise RequestError("the prompt is empty; give some text")
    if not len(text):
        raise RequestError("a continuation is empty; give some text")
    context = tuple(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
    if not isinstance(text, str):
        return ScoredText((*context, *text), len(context))
    if not isinstance(prompt, str):
        added = tokenizer.encode(text, add_special_tokens=False)
        return ScoredText((*context, *added), len(context))
    whole = tuple(tokenizer.encode(prompt + text))
    if len(whole) < 2:
        raise RequestError(
            f"{prompt + text!r} is a single token, which nothing predicts; give a longer prompt"
        )
    return ScoredText(whole, max(1, min(_num_equal(whole, context), len(whole) - 1)))


def windows(
    token_ids: Sequence[int], context_length: int, length: int | None, stride: int | None
) -> Iterator[ScoredText]:
    """Windows over a text in which each token but the first is scored once.

    As in Hugging Face's guide to perplexity: windows of ``length`` tokens begin ``stride`` tokens
    apart, and in each the tokens are scored that the one before did not have.

    Raises:
        RequestError: fewer than two tokens.
        ConfigError: a length or stride out of range.
    """
    if len(token_ids) < 2:
        raise RequestError("perplexity needs a text of two tokens at least: one to predict")
    length = min(context_length, _DEFAULT_LENGTH) if length is None else length
    _check("max_length", length, 2, context_length)
    stride = max(1, length // 2) if stride is None else stride
    _check("stride", stride, 1, length - 1)
    return _windows(token_ids, length, stride)


def _windows(token_ids: Sequence[int], length: int, stride: int) -> Iterator[ScoredText]:
    end = 1
    for begin in range(0, len(token_ids), stride):
        window = tuple(token_ids[begin : begin + length])
        yield ScoredText(window, end - begin)
        end = begin + len(window)
        if end == len(token_ids):
            return


def _check(name: str, value: object, lowest: int, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise ConfigError(f"{name} must be a whole number, {lowest} to {highest}, not {value!r}")


def _num_equal(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens that both begin with."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))
