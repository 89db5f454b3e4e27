"""Token healing: the prompt's last token may be a fragment of the one that the model would use.

A prompt that ends with "http:" ends with the token ":", while in the model's training texts "://"
is one token: it has hardly ever seen ":" followed by "//". So the last token is taken off the
prompt, and the first generated one must begin with its text. The idea is guidance-ai's ("The Art of
Prompt Design: Prompt Boundaries and Token Healing"); transformers has it as `heal_tokens`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ovgen.text.detokenizer import IncrementalDetokenizer, is_byte_token
from ovgen.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class Healing:
    """How to go on from a prompt whose last token was taken off.

    Attributes:
        prompt_token_ids: the prompt without its last token.
        allowed_token_ids: what the first generated token may be, ascending: the removed one and all
            that extend it.
        num_hidden_characters: how many characters the removed token has when it continues the
            prompt; the output begins with them, and they are not to be shown again.
    """

    prompt_token_ids: tuple[int, ...]
    allowed_token_ids: tuple[int, ...]
    num_hidden_characters: int


class HealingIndex:
    """Finds the tokens that extend another one. To be kept with its tokenizer: the first call sorts
    the whole vocabulary, each further one costs two binary searches."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def heal(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> Healing | None:
        """The healing of a prompt; None where there is nothing to heal, or no way to.

        That is: the prompt has one token only, or its last token is special, stands for a byte, is
        part of a character, or is one that no other token extends.

        `skip_special_tokens`: as of the `TextStream` that decodes the output.
        """
        if len(token_ids) < 2:
            return None
        *prompt, last = token_ids
        spelling = self._spelling(last)
        if spelling is None or _REPLACEMENT in (text := self._text(last)):
            return None
        allowed = self._extensions(spelling)
        if "\\" in spelling:  # perhaps not text: OpenVINO's tokenizer spells broken bytes as \xe4
            allowed = [id_ for id_ in allowed if self._text(id_).startswith(text)]
        if len(allowed) < 2:
            return None
        stream = IncrementalDetokenizer(
            self._tokenizer, skip_special_tokens=skip_special_tokens, prompt_token_ids=prompt
        )
        hidden = len(stream.decode([last]))
        return Healing(tuple(prompt), tuple(sorted(allowed)), hidden)

    def _extensions(self, spelling: str) -> list[int]:
        spellings, token_ids = self._sorted
        start = bisect_left(spellings, spelling)
        end = bisect_left(spellings, True, start, key=lambda other: not other.startswith(spelling))
        return token_ids[start:end]

    @cached_property
    def _sorted(self) -> tuple[list[str], list[int]]:
        """Spellings in order, and the id of each."""
        pairs = []
        for token_id in range(self._tokenizer.vocab_size):
            spelling = self._spelling(token_id)
            if spelling is not None:
                pairs.append((spelling, token_id))
        pairs.sort()
        return [spelling for spelling, _ in pairs], [token_id for _, token_id in pairs]

    def _spelling(self, token_id: int) -> str | None:
        """The spelling of a token that has a text to heal, else None."""
        if token_id in self._tokenizer.special_ids:
            return None
        spelling = self._tokenizer.id_to_token(token_id)
        return None if not spelling or is_byte_token(spelling) else spelling

    def _text(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id])
