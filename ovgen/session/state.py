"""What a session goes on with, and what a turn adds to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ovgen.errors import RequestError


@dataclass(frozen=True, slots=True)
class SessionState:
    """All of a session but the LLM that serves it; each turn makes a new one.

    Attributes:
        seed: of the session's random numbers.
        token_ids: all of its tokens; where it is of messages, those of its last turn.
        messages: None where it is of text, or has not begun.
        num_turns: turns so far.
        cache_salt: of its last turn.
    """

    seed: int
    token_ids: tuple[int, ...] = ()
    messages: tuple[dict[str, Any], ...] | None = None
    num_turns: int = 0
    cache_salt: str = ""

    @property
    def salt(self) -> bytes:
        """What its part of the prefix cache goes by."""
        return self.cache_salt.encode("utf-8", "surrogatepass")


def new_messages(
    message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """New messages of a turn; the chat template checks the rest of their form."""
    if isinstance(message, str):
        return [{"role": "user", "content": message}]
    several = [message] if isinstance(message, Mapping) else message
    if not isinstance(several, Sequence) or not several:
        raise RequestError(
            "a message is a string, a dict with role and content, or a list of such, not "
            f"{message!r:.80}"
        )
    for one in several:
        if not isinstance(one, Mapping):
            raise RequestError(f"a message must be a dict with role and content, not {one!r:.80}")
    return [dict(one) for one in several]
