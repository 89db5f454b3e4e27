"""The LLM for asyncio: the same engine, whose thread wakes the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, Signature, signature
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from ovgen.async_handle import AsyncGenerationHandle, EventLoops
from ovgen.decoding.processing import UserProcessor
from ovgen.engine.mailbox import Submission
from ovgen.generation_config import GenerationConfig
from ovgen.llm import LLM, Message, Prompt
from ovgen.outputs import RequestOutput, StreamChunk

# Characters or tokens of a prompt that the event loop may encode itself; longer ones, and chats,
# go to another thread meanwhile.
_SHORT = 4096

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Preparation:
    """How a request is made, which nobody serves yet: in the event loop, or not to keep it up."""

    make: Callable[[], Submission]
    is_short: bool = False

    async def run(self) -> Submission:
        return self.make() if self.is_short else await asyncio.to_thread(self.make)


def _with_arguments_of(
    of: Callable[_P, object],
) -> Callable[[Callable[..., _T]], Callable[Concatenate[Any, _P], _T]]:
    """Say, to type checkers and to `help`, that a method passes all its arguments on."""

    def decorate(method: Callable[..., _T]) -> Callable[Concatenate[Any, _P], _T]:
        own = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [own, *signature(of).parameters.values()]
        method.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        return method

    return decorate


class AsyncLLM:
    """A model, ready to generate, for asyncio: `LLM` with the same arguments.

    Its requests are served together, whichever tasks and event loops they come from. The
    constructor loads the model and returns when it is there; where an event loop has others to
    serve meanwhile, `load` is the way.

    Attributes:
        llm: the LLM beneath, for whatever is not here: its tokenizer, or requests of other threads.

    Raises:
        OvgenError: see `ovgen.errors`.

    Example:
        >>> async with await AsyncLLM.load("smollm2-135m-instruct") as llm:
        ...     async for chunk in llm.stream("The capital of France is", max_new_tokens=5):
        ...         print(chunk, end="")
    """

    @_with_arguments_of(LLM)
    def __init__(self, *args: Any, **options: Any) -> None:
        self.llm = LLM(*args, **options)
        self._loops = EventLoops()

    @classmethod
    @_with_arguments_of(LLM)
    async def load(cls, *args: Any, **options: Any) -> AsyncLLM:
        """As the constructor, while the event loop goes on."""
        return await asyncio.to_thread(cls, *args, **options)

    async def generate(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        logits_processors: Sequence[UserProcessor] = (),
        **options: Any,
    ) -> RequestOutput:
        """Complete a prompt; see `LLM.generate`. Cancellation stops the work.

        Many are served together: give `asyncio.gather` a call for each.

        Raises:
            RequestError: a prompt that cannot be served, or no token is left to choose.
            ConfigError: an option that is unknown, out of range or without effect.
        """
        return await self._output(self._preparation(prompt, config, logits_processors, options))

    async def submit(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        logits_processors: Sequence[UserProcessor] = (),
        **options: Any,
    ) -> AsyncGenerationHandle:
        """As `generate`, without waiting for the output; see `LLM.submit`."""
        return await self._submit(self._preparation(prompt, config, logits_processors, options))

    def stream(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        logits_processors: Sequence[UserProcessor] = (),
        **options: Any,
    ) -> AsyncGenerator[StreamChunk, None]:
        """As `generate`, a chunk at a time; the last chunk holds the whole output.

        An asynchronous generator. The work begins when its first chunk is asked for, and is stopped
        by cancellation, by ``aclose()`` and by breaking out of a loop over it. Errors of the
        options are raised here, those of the prompt by the first chunk.
        """
        return self._chunks(self._preparation(prompt, config, logits_processors, options))

    async def chat(
        self,
        messages: Sequence[Message],
        config: GenerationConfig | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_args: Mapping[str, Any] | None = None,
        logits_processors: Sequence[UserProcessor] = (),
        **options: Any,
    ) -> RequestOutput:
        """Answer a chat; see `LLM.chat`. Cancellation stops the work.

        Raises:
            TemplateError: the model has no chat template, or it refuses the messages.
        """
        return await self._output(
            _Preparation(
                partial(
                    self.llm._prepare_chat,
                    messages,
                    self.llm._config(config, options),
                    logits_processors,
                    tools=tools,
                    add_generation_prompt=add_generation_prompt,
                    template_args=template_args,
                )
            )
        )

    def stream_chat(
        self,
        messages: Sequence[Message],
        config: GenerationConfig | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_args: Mapping[str, Any] | None = None,
        logits_processors: Sequence[UserProcessor] = (),
        **options: Any,
    ) -> AsyncGenerator[StreamChunk, None]:
        """As `chat`, a chunk at a time; see `stream`."""
        return self._chunks(
            _Preparation(
                partial(
                    self.llm._prepare_chat,
                    messages,
                    self.llm._config(config, options),
                    logits_processors,
                    tools=tools,
                    add_generation_prompt=add_generation_prompt,
                    template_args=template_args,
                )
            )
        )

    async def aclose(self) -> None:
        """Free the model; everything but another aclose() then raises ClosedError.

        Waits for the step under way, without the event loop. Requests that have not ended do so
        with ClosedError, after the chunks that are there.
        """
        await asyncio.to_thread(self.llm.close)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _preparation(
        self,
        prompt: Prompt,
        config: GenerationConfig | None,
        logits_processors: Sequence[UserProcessor],
        options: Mapping[str, Any],
    ) -> _Preparation:
        decoding = self.llm._config(config, options)
        return _Preparation(
            partial(self.llm._prepare, prompt, decoding, logits_processors),
            is_short=not isinstance(prompt, Sized) or len(prompt) <= _SHORT,
        )

    async def _submit(
        self, preparation: _Preparation, *, has_stream: bool = False
    ) -> AsyncGenerationHandle:
        handle = self.llm._submit(await preparation.run(), has_stream=has_stream)
        return AsyncGenerationHandle(handle, self._loops)

    async def _output(self, preparation: _Preparation) -> RequestOutput:
        handle = await self._submit(preparation)
        try:
            return await handle.result()
        finally:
            handle.close()

    async def _chunks(self, preparation: _Preparation) -> AsyncGenerator[StreamChunk, None]:
        handle = await self._submit(preparation, has_stream=True)
        try:
            while (chunk := await handle.next()) is not None:
                yield chunk
        finally:
            handle.close()
