"""Token ids to text while they come, in pieces that are never taken back.

Decoding everything at each step costs quadratic time, and decoding each token alone is wrong: a
character may span tokens, and the first token of a text loses its leading space. So a short window
of the last tokens is decoded, and what is new and certain in it is given out. The idea is that of
the prefix and read offsets in text-generation-inference and vLLM, but what was given out is counted
in characters of the window's text, so the window may begin and end anywhere and is always short.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from ovgen.text.tokenizer import Tokenizer

# At most three bytes of a UTF-8 character can be there while it is incomplete, each shown as one
# U+FFFD at worst: only these can still become something else.
_MAX_UNCERTAIN = 3
_REPLACEMENT = "\ufffd"

# Tokens kept when the window moves. Four bytes bring a UTF-8 decoder that starts in the middle of a
# character back in step, and nearly every token has one or more; the rest is margin.
_KEEP = 6
_WINDOW = 20


class IncrementalDetokenizer:
    """Decodes one sequence: the pieces from `decode` and the last one from `flush`, joined, equal
    `tokenizer.decode` of all ids.

    Held back is only what a further token could change: U+FFFD at the end (perhaps the first bytes
    of a character), and a run of byte tokens such as `<0xE4>` (one invalid byte turns the whole run
    into U+FFFD). Ids without a token, which a model with padded logits may pick, have no text.

    `prompt_token_ids`: the ids before, when the text is to continue them (a leading space stays)
    instead of standing for itself. Costs O(1) a token: about one decode of a dozen ids a call.
    """

    __slots__ = ("_byte_run", "_given", "_skip", "_skipped_ids", "_tokenizer", "_window")

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        prompt_token_ids: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._skipped_ids = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._window: list[int] = []
        self._byte_run: list[int] = []  # follows the window; enters it when the run is over
        self._given = 0  # how many characters of the window's text were given out
        self.decode(prompt_token_ids[-_WINDOW:])

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text that these further ids make certain; may be empty."""
        if not self._extend_window(token_ids):
            return ""
        text = self._decode(self._window)
        certain = _certain_length(text)
        piece = text[self._given : certain]
        self._given = max(self._given, certain)
        if len(self._window) > _WINDOW:
            self._move_window(len(text) - self._given)
        return piece

    def flush(self) -> str:
        """The text held back. The sequence ends here."""
        text = self._decode(self._window + self._byte_run)
        piece = text[self._given :]
        self._given = len(text)
        return piece

    def fork(self) -> IncrementalDetokenizer:
        """A copy that goes on by itself; only the tokenizer is shared."""
        other = copy(self)
        other._window = self._window.copy()
        other._byte_run = self._byte_run.copy()
        return other

    def _extend_window(self, token_ids: Sequence[int]) -> bool:
        """Append the ids that have text; False when the window stays as it was."""
        before = len(self._window)
        for token_id in token_ids:
            # Left out here rather than by the decoder, so that a long row of them costs nothing.
            if token_id in self._skipped_ids:
                continue
            token = self._tokenizer.id_to_token(token_id)
            if token is None:
                continue
            if is_byte_token(token):
                self._byte_run.append(token_id)
                continue
            if self._byte_run:
                self._window += self._byte_run
                self._byte_run.clear()
            self._window.append(token_id)
        return len(self._window) > before

    def _move_window(self, held: int) -> None:
        """Keep the last tokens only; `held` characters at the end were not given out yet.

        What the cut did to the beginning of the text does not matter, as long as there is some: the
        decoder then treats no later token as the first one.
        """
        tail = self._window[-_KEEP:]
        text = self._decode(tail)
        if len(text) <= held:  # tokens without text; put one that has some before them
            tail = self._last_with_text() + tail
            text = self._decode(tail)
        self._window = tail
        self._given = max(len(text) - held, 0)

    def _last_with_text(self) -> list[int]:
        head = self._window[:-_KEEP]
        for token_id in reversed(head):
            if self._decode([token_id]):
                return [token_id]
        return head[:_KEEP]

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip)


def _certain_length(text: str) -> int:
    end = len(text)
    while end > max(len(text) - _MAX_UNCERTAIN, 0) and text[end - 1] == _REPLACEMENT:
        end -= 1
    return end


def is_byte_token(token: str) -> bool:
    """Whether a vocabulary's spelling stands for one byte, as `<0xE4>` does in SentencePiece's."""
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")
