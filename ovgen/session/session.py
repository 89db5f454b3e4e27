"""Sessions: a conversation with a model that is gone on with, forked, saved and loaded."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from ovgen.decoding.processing import UserProcessor
from ovgen.decoding.random import derived_seed, new_seed
from ovgen.engine.mailbox import Submission
from ovgen.errors import RequestError
from ovgen.generation_checks import CHECKS
from ovgen.generation_config import GenerationConfig
from ovgen.outputs import RequestOutput
from ovgen.session.host import Message, SessionHost
from ovgen.session.state import SessionState, new_messages
from ovgen.session.store import load_state, save_state
from ovgen.session.stream import SessionStream, Turn
from ovgen.text.prompt_encoder import plain_token_ids


class Session:
    """A conversation with a model; `LLM.session` and `LLM.load_session` make them.

    It is either of text, where each prompt goes on after all that was there before, or of messages,
    which the chat template renders anew for each turn; its first turn says which. Of several
    outputs of a turn the first one goes on. A turn that brings nothing, for an error ended it or it
    was closed before its first token, leaves the session as it was.

    What is computed of it stays in the prefix cache as long as there is room, and is computed anew
    otherwise: a session keeps nothing else from anybody. With attention_backend="stateful", which
    has no prefix cache, each turn computes all of it.

    A turn that samples without a ``seed`` of its own draws with `derived_seed` of the session's
    seed and of the turn's number, from 0: a session with the same seed that is asked the same gives
    the same. One turn at a time; further ones are refused with RequestError meanwhile.

    Args:
        llm: that serves it.
        state: what it goes on with.
    """

    def __init__(self, llm: SessionHost, state: SessionState) -> None:
        self._llm = llm
        self._state = state
        self._in_use = Lock()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens so far, prompts and outputs; of messages: those of the last turn."""
        return self._state.token_ids

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All messages so far, the answers included; none in a session of text."""
        return copy.deepcopy(list(self._state.messages or ()))

    @property
    def num_turns(self) -> int:
        """Turns so far."""
        return self._state.num_turns

    @property
    def seed(self) -> int:
        """The seed that those of the turns are derived from."""
        return self._state.seed

    def generate(
        self,
        prompt: str | Sequence[int],
        config: GenerationConfig | None = None,
        *,
        logits_processors: Sequence[UserProcessor] = (),
        **options: Any,
    ) -> RequestOutput:
        """Go on with a prompt after all that was there before.

        Args:
            prompt: a string or token ids. Strings are tokenized by themselves, and only the first
                one with the special tokens of a beginning.
            config: how to decode; what it leaves open is the model's own.
            logits_processors: see `LLM.generate`.
            **options: single options of GenerationConfig.

        Raises:
            RequestError: a prompt that cannot be served, a session of messages, or one in use.
            ConfigError: an option that is unknown, out of range or without effect.
        """
        stream = self.stream(prompt, config, logits_processors=logits_processors, **options)
        with stream:
            return stream.result()

    def stream(
        self,
        prompt: str | Sequence[int],
        config: GenerationConfig | None = None,
        *,
        logits_processors: Sequence[UserProcessor] = (),
        **options: Any,
    ) -> SessionStream:
        """As `generate`, a chunk at a time.

        The session goes on with the whole output once it was read, and with the chunks that were
        read where the stream is closed or dropped before.
        """
        started = time.perf_counter()
        with self._turn() as state:
            if state.messages is not None:
                raise RequestError("this session is one of messages: go on with chat()")
            decoding = self._seeded(self._llm._config(config, options))
            tokens = state.token_ids + self._encoded(prompt, is_first=not state.token_ids)
            self._refuse_too_long(tokens)
            prepared = self._llm._prepare(tokens, decoding, logits_processors, started)
            return self._begin(prepared, None)

    def chat(
        self,
        message: str | Message | Sequence[Message],
        config: GenerationConfig | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        logits_processors: Sequence[UserProcessor] = (),
        **options: Any,
    ) -> RequestOutput:
        """Answer a message after all those before.

        Args:
            message: a user's text, a message, or several, such as a system's and a user's.
            config: how to decode; what it leaves open is the model's own.
            tools: see `LLM.chat`; to be given again in each turn.
            template_args: the same.
            logits_processors: see `LLM.generate`.
            **options: single options of GenerationConfig.

        Raises:
            RequestError: messages that cannot be served, a session of text, or one in use.
            ConfigError: an option that is unknown, out of range or without effect.
        """
        stream = self.stream_chat(
            message,
            config,
            tools=tools,
            template_args=template_args,
            logits_processors=logits_processors,
            **options,
        )
        with stream:
            return stream.result()

    def stream_chat(
        self,
        message: str | Message | Sequence[Message],
        config: GenerationConfig | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        logits_processors: Sequence[UserProcessor] = (),
        **options: Any,
    ) -> SessionStream:
        """As `chat`, a chunk at a time; see `stream`."""
        with self._turn() as state:
            if state.messages is None and state.num_turns:
                raise RequestError("this session is one of text: go on with generate()")
            messages = [*(state.messages or ()), *new_messages(message)]
            prepared = self._llm._prepare_chat(
                messages,
                self._seeded(self._llm._config(config, options)),
                logits_processors,
                tools=tools,
                add_generation_prompt=True,
                template_args=template_args,
            )
            return self._begin(prepared, copy.deepcopy(messages))

    def fork(self) -> Session:
        """Another session with the same past, which goes its own way from here.

        Asked the same it gives the same: its seed and the number of its next turn are those of this
        one.

        Raises:
            RequestError: a turn is under way.
        """
        with self._kept():
            return Session(self._llm, self._state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session to a file, with what the prefix cache has of it.

        Args:
            path: of the file; one that is there is replaced, when all is written.

        Raises:
            RequestError: a turn is under way, or a message is nothing that JSON can express.
            StorageError: it cannot be written.
        """
        with self._kept():
            save_state(Path(path), self._state, self._llm.folder, self._llm._service)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Keep others from the session meanwhile."""
        self._claim()
        try:
            yield
        finally:
            self._in_use.release()

    @contextmanager
    def _turn(self) -> Iterator[SessionState]:
        """Claim the session; it is given back by the turn's stream, or here after an error."""
        self._claim()
        try:
            yield self._state
        except BaseException:
            if self._in_use.locked():  # not where an interrupt came after the stream was made
                self._in_use.release()
            raise

    def _claim(self) -> None:
        if not self._in_use.acquire(blocking=False):
            raise RequestError(
                "a turn of this session is under way: finish or close its stream first, or fork "
                "the session before it"
            )

    def _begin(self, prepared: Submission, messages: list[dict[str, Any]] | None) -> SessionStream:
        state, echo = self._state, len(prepared.arrival.echo)

        def end(token_ids: tuple[int, ...], text: str) -> None:
            if token_ids:
                answer = {"role": "assistant", "content": text[echo:]}
                self._state = replace(
                    state,
                    token_ids=prepared.request.prompt_token_ids + token_ids,
                    messages=None if messages is None else (*messages, answer),
                    num_turns=state.num_turns + 1,
                    cache_salt=prepared.config.cache_salt,
                )
            self._in_use.release()

        return SessionStream(self._llm._submit(prepared).stream(), Turn(end))

    def _seeded(self, config: GenerationConfig) -> GenerationConfig:
        if not config.do_sample or config.seed is not None:
            return config
        return config.replace(seed=derived_seed(self._state.seed, self._state.num_turns))

    def _encoded(self, prompt: str | Sequence[int], *, is_first: bool) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            token_ids = plain_token_ids(prompt)
        else:
            encode = self._llm.tokenizer.encode
            token_ids = tuple(encode(prompt, add_special_tokens=is_first) if prompt else ())
        if not token_ids:
            raise RequestError("the prompt is empty; give at least one token")
        return token_ids

    def _refuse_too_long(self, token_ids: tuple[int, ...]) -> None:
        past, context = len(self._state.token_ids), self._llm.context_length
        if past and len(token_ids) >= context:
            raise RequestError(
                f"this session has {past} tokens and the prompt {len(token_ids) - past}; the "
                f"model's context of {context} must hold them and at least one new token: begin a "
                "new session"
            )


def new_session(llm: SessionHost, seed: int | None) -> Session:
    """A session that has not begun; see `LLM.session`."""
    return Session(llm, SessionState(new_seed() if seed is None else CHECKS["seed"]("seed", seed)))


def load_session(llm: SessionHost, path: str | os.PathLike[str]) -> Session:
    """The session of a file; see `LLM.load_session`."""
    state = load_state(
        Path(path),
        llm.folder,
        llm._service,
        context_length=llm.context_length,
        vocab_size=llm.vocab_size,
    )
    return Session(llm, state)
