"""Stop strings in streamed text: nothing of a stop string gets out, nothing else is lost."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from ovgen.errors import ConfigError


class StopStringMatcher:
    """Passes text on until the first stop string.

    The first means: feed the text one character at a time, and stop at the first character with
    which any stop string is complete; of those complete there, the longest counts. How the text is
    cut into pieces therefore never changes the result. A stop string that contains another one
    before its own end ("</s>" when "</" stops too) can never match.

    Costs O(1) a character: the Aho-Corasick automaton ("Efficient string matching", 1975) of the
    stop strings, whose depth is the length of the text to hold back.
    """

    def __init__(
        self, stop_strings: Sequence[str], *, include_stop_str_in_output: bool = False
    ) -> None:
        if isinstance(stop_strings, str):
            stop_strings = [stop_strings]
        for index, stop in enumerate(stop_strings):
            if not isinstance(stop, str) or not stop:
                raise ConfigError(f"stop_strings[{index}] must be a non-empty string, not {stop!r}")
        self._automaton = _Automaton(stop_strings)
        self._include = include_stop_str_in_output
        self._state = 0
        self._held = ""  # the suffix of the text so far that begins a stop string
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that was found, None while there is none."""
        return self._matched

    def decode(self, text: str) -> str:
        """The part of the text so far that is safe to show now; "" once a stop string was found."""
        if self._matched is not None:
            return ""
        automaton = self._automaton
        state = self._state
        for index, char in enumerate(text):
            state = automaton.step(state, char)
            stop = automaton.match[state]
            if stop is not None:
                return self._stop_at(self._held + text[: index + 1], stop)
        self._state = state
        text = self._held + text
        safe = len(text) - automaton.depth[state]
        self._held = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """The text held back, when it ends without a stop string."""
        held, self._held, self._state = self._held, "", 0
        return held

    def fork(self) -> StopStringMatcher:
        """A copy that goes on by itself; only the automaton, which never changes, is shared."""
        return copy(self)

    def _stop_at(self, text: str, stop: str) -> str:
        self._matched = stop
        self._held = ""
        return text if self._include else text[: len(text) - len(stop)]


class _Automaton:
    """Aho-Corasick: a state is the longest suffix of the text that begins a stop string."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self.children: list[dict[str, int]] = [{}]
        self.depth = [0]
        self.match: list[str | None] = [None]  # the longest stop string that ends in this state
        self._fallback = [0]  # the longest proper suffix that is a state, too
        for stop in stop_strings:
            self._insert(stop)
        self._link()

    def step(self, state: int, char: str) -> int:
        """The state after one more character."""
        while char not in self.children[state]:
            if state == 0:
                return 0
            state = self._fallback[state]
        return self.children[state][char]

    def _insert(self, stop: str) -> None:
        state = 0
        for depth, char in enumerate(stop, start=1):
            child = self.children[state].get(char)
            if child is None:
                child = len(self.depth)
                self.children[state][char] = child
                self.children.append({})
                self.depth.append(depth)
                self.match.append(None)
                self._fallback.append(0)
            state = child
        self.match[state] = stop

    def _link(self) -> None:
        queue = list(self.children[0].values())  # breadth first, so a fallback is ready when needed
        for state in queue:
            for char, child in self.children[state].items():
                fallback = self.step(self._fallback[state], char)
                self._fallback[child] = fallback
                if self.match[child] is None:
                    self.match[child] = self.match[fallback]
                queue.append(child)
