"""From a prompt as the user gives it to tokens, with what the options need of the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index

from ovgen.errors import RequestError
from ovgen.generation_config import GenerationConfig
from ovgen.text.sequence_breakers import TokenTexts, token_sequences
from ovgen.text.token_healing import HealingIndex
from ovgen.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt in tokens.

    Attributes:
        token_ids: the prompt, without the token that is being healed.
        negative_token_ids: of the negative prompt, None where none was given.
        first_token_ids: what may come first in healing, empty: anything.
        num_hidden_characters: how much of the output repeats the prompt's end.
        breakers: token sequences for DRY.
        echo: the prompt's text, where it is wanted.
    """

    token_ids: Sequence[int]
    negative_token_ids: Sequence[int] | None = None
    first_token_ids: tuple[int, ...] = ()
    num_hidden_characters: int = 0
    breakers: frozenset[tuple[int, ...]] = frozenset()
    echo: str = ""


class PromptEncoder:
    """Encodes the prompts of one LLM; what it learns of the vocabulary is kept."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._healing = HealingIndex(tokenizer)
        self._texts = TokenTexts(tokenizer)
        self._breakers: dict[tuple[str, ...], frozenset[tuple[int, ...]]] = {}

    def encode(
        self, prompt: str | Sequence[int], config: GenerationConfig, *, add_special_tokens: bool
    ) -> EncodedPrompt:
        """A prompt for a resolved config.

        Raises:
            RequestError: the prompt is empty, or no text.
        """
        token_ids = self._ids(prompt, "prompt", add_special_tokens)
        negative = config.negative_prompt
        healing = None
        if config.token_healing:
            healing = self._healing.heal(token_ids, skip_special_tokens=config.skip_special_tokens)
        return EncodedPrompt(
            token_ids if healing is None else healing.prompt_token_ids,
            None if negative is None else self._ids(negative, "negative_prompt", True),
            () if healing is None else healing.allowed_token_ids,
            0 if healing is None else healing.num_hidden_characters,
            self._breakers_of(config),
            self._text(token_ids, config) if config.echo else "",
        )

    def _ids(
        self, prompt: str | Sequence[int], name: str, add_special_tokens: bool
    ) -> Sequence[int]:
        if not isinstance(prompt, str):
            return plain_token_ids(prompt)
        if not prompt:
            raise RequestError(f"the {name} is empty; give some text")
        return self._tokenizer.encode(prompt, add_special_tokens=add_special_tokens)

    def _text(self, token_ids: Sequence[int], config: GenerationConfig) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=config.skip_special_tokens)

    def _breakers_of(self, config: GenerationConfig) -> frozenset[tuple[int, ...]]:
        if not config.dry_multiplier:
            return frozenset()
        breakers = tuple(config.dry_sequence_breakers or ())
        if breakers not in self._breakers:
            self._breakers[breakers] = token_sequences(self._texts, breakers)
        return self._breakers[breakers]


def plain_token_ids(prompt: object) -> tuple[int, ...]:
    """A prompt as plain ints; numpy's are welcome, while bools and bytes are mistakes."""
    if not isinstance(prompt, Iterable) or isinstance(prompt, (str, bytes, bytearray)):
        raise RequestError(f"a prompt is a string or a list of token ids, not {prompt!r:.80}")
    tokens = tuple(prompt)
    try:
        if not any(isinstance(token, bool) for token in tokens):
            return tuple(map(index, tokens))
    except TypeError:
        pass
    raise RequestError(f"token ids must be whole numbers, not as in {tokens!r:.80}")
