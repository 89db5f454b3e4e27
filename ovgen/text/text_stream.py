"""The text of one sequence while it comes: detokenizer and stop strings as one thing."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from ovgen.text.detokenizer import IncrementalDetokenizer
from ovgen.text.stop_strings import StopStringMatcher
from ovgen.text.tokenizer import Tokenizer


class TextStream:
    """Token ids in, text out that is never taken back: the pieces from `decode` and the last one
    from `flush`, joined, are the text of all ids up to the first of `stop_strings`.

    `prompt_token_ids`: the ids before, when the text is to continue them instead of standing for
    itself. `num_hidden_characters`: that many first characters are neither given out nor searched
    for stop strings; with token healing they repeat the end of the prompt. They are counted in a
    text that continues the prompt, so give `prompt_token_ids` with them.
    """

    __slots__ = ("_detokenizer", "_hidden", "_matcher")

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop_strings: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        skip_special_tokens: bool = True,
        prompt_token_ids: Sequence[int] = (),
        num_hidden_characters: int = 0,
    ) -> None:
        self._detokenizer = IncrementalDetokenizer(
            tokenizer, skip_special_tokens=skip_special_tokens, prompt_token_ids=prompt_token_ids
        )
        self._matcher: StopStringMatcher | None = None
        if stop_strings:
            self._matcher = StopStringMatcher(
                stop_strings, include_stop_str_in_output=include_stop_str_in_output
            )
        self._hidden = num_hidden_characters  # how many are still to come

    @property
    def matched(self) -> str | None:
        """The stop string that was found, None while there is none."""
        return None if self._matcher is None else self._matcher.matched

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text that these further ids make certain; "" once a stop string was found."""
        if self.matched is not None:
            return ""
        return self._show(self._detokenizer.decode(token_ids))

    def flush(self) -> str:
        """The text held back. The sequence ends here; this may still complete a stop string."""
        if self.matched is not None:
            return ""
        text = self._show(self._detokenizer.flush())
        return text if self._matcher is None else text + self._matcher.flush()

    def fork(self) -> TextStream:
        """A copy that goes on by itself, at the cost of two short lists."""
        other = copy(self)
        other._detokenizer = self._detokenizer.fork()
        if self._matcher is not None:
            other._matcher = self._matcher.fork()
        return other

    def _show(self, text: str) -> str:
        shown = text[self._hidden :]
        self._hidden -= len(text) - len(shown)
        return shown if self._matcher is None else self._matcher.decode(shown)
