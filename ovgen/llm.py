"""The front door: one loaded model that answers prompts and chats."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, cast, overload

from ovgen.engine.engine import Engine
from ovgen.engine.output_processor import Arrival, OutputProcessor
from ovgen.engine.sequence import Request
from ovgen.engine_config import EngineConfig
from ovgen.errors import ClosedError, ConfigError, OvgenError, RequestError, TemplateError
from ovgen.generation_config import GenerationConfig, refuse_unknown_options
from ovgen.model.compiled_cache import CompiledCache
from ovgen.model.loader import load_model
from ovgen.model.resolve import compiled_cache_folder, resolve_folder
from ovgen.model.stateful_runner import StatefulRunner
from ovgen.outputs import RequestOutput, StreamChunk
from ovgen.text.chat_template import ChatTemplate, load_chat_template
from ovgen.text.tokenizer import Tokenizer, load_tokenizer

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


class LLM:
    """A model, ready to generate.

    May be used from several threads, and by several streams at once: requests are served first
    come, first served, and whoever waits for one drives the engine meanwhile.

    Args:
        model: an alias of the catalog, an IR folder, a ``.gguf`` file or a Hugging Face repository
            id. Downloads and exports are kept in ``OVGEN_HOME``.
        device: an OpenVINO device name.
        precision: ``default``, or ``exact`` for float32 throughout.
        weights: how a GGUF file is exported: ``auto``, ``exact``, ``int8`` or ``f16``.
        properties: OpenVINO compile properties, passed on as they are.
        token_budget: most tokens in one step; longer prompts are computed in chunks of it, which
            takes less memory but more time.
        offline: never reach for the network; None: as ``OVGEN_OFFLINE`` says.

    Raises:
        OvgenError: see `ovgen.errors`.

    Example:
        >>> with LLM("smollm2-135m-instruct") as llm:
        ...     print(llm.generate("The capital of France is", max_new_tokens=5).text)
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        device: str = "CPU",
        precision: str = "default",
        *,
        weights: str = "auto",
        properties: Mapping[str, Any] | None = None,
        token_budget: int = 8192,
        offline: bool | None = None,
    ) -> None:
        config = EngineConfig(
            device=device,
            precision=precision,
            properties=properties or {},
            token_budget=token_budget,
        )
        started = time.perf_counter()
        self._lock = Lock()
        self._closed = False
        self._mailboxes: dict[int, deque[StreamChunk]] = {}  # by request_id
        self._abandoned: deque[Request] = deque()
        self.folder = resolve_folder(model, weights=weights, offline=offline)
        self.generation_config = GenerationConfig.from_pretrained(self.folder)
        # The tokenizer is parsed while the device compiles.
        with ThreadPoolExecutor(1) as pool:
            text = pool.submit(_load_text, self.folder)
            loaded = load_model(self.folder, config, CompiledCache(compiled_cache_folder()))
            self.tokenizer, self._chat_template = text.result()
        self.context_length = loaded.context_length
        self.load_time = time.perf_counter() - started
        runner = StatefulRunner(loaded.compiled, loaded.blob)
        self._engine = Engine(
            runner,
            OutputProcessor(self.tokenizer, load_time=self.load_time),
            context_length=loaded.context_length,
            vocab_size=loaded.vocab_size,
            token_budget=min(token_budget, runner.max_batch_tokens or token_budget),
        )

    @overload
    def generate(
        self, prompt: Prompt, config: GenerationConfig | None = None, **options: Any
    ) -> RequestOutput: ...

    @overload
    def generate(
        self, prompt: Sequence[Prompt], config: GenerationConfig | None = None, **options: Any
    ) -> list[RequestOutput]: ...

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        config: GenerationConfig | None = None,
        **options: Any,
    ) -> RequestOutput | list[RequestOutput]:
        """Complete a prompt, or each of a list of prompts.

        Args:
            prompt: a string or a list of token ids; or a list of such prompts.
            config: how to decode; what it leaves open is the model's own.
            **options: single options of GenerationConfig.

        Returns:
            One RequestOutput for one prompt, a list in the same order for a list.

        Raises:
            RequestError: a prompt that cannot be served.
            ConfigError: an option that is unknown, out of range or without effect.
        """
        decoding = self._config(config, options)
        if is_one_prompt(prompt):
            return _last(self._submit(cast("Prompt", prompt), decoding))
        streams = [self._submit(one, decoding) for one in cast("Sequence[Prompt]", prompt)]
        try:
            return [_last(stream) for stream in streams]
        finally:
            for stream in streams:
                stream.close()

    def stream(
        self, prompt: Prompt, config: GenerationConfig | None = None, **options: Any
    ) -> Generator[StreamChunk, None, None]:
        """As `generate`, a chunk at a time; the last chunk holds the whole output.

        Closing the generator stops the work. Errors are raised here, not by the first chunk.
        """
        return self._submit(prompt, self._config(config, options))

    def chat(
        self,
        messages: Sequence[Message],
        config: GenerationConfig | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_args: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> RequestOutput:
        """Answer a chat.

        Args:
            messages: dicts with ``role`` and ``content``, oldest first.
            config: how to decode; what it leaves open is the model's own.
            tools: JSON schemas of functions that the template tells the model of.
            add_generation_prompt: end the prompt where the assistant's turn begins.
            template_args: further variables of the chat template.
            **options: single options of GenerationConfig.

        Raises:
            TemplateError: the model has no chat template, or it refuses the messages.
        """
        return _last(
            self.stream_chat(
                messages,
                config,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                template_args=template_args,
                **options,
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
        **options: Any,
    ) -> Generator[StreamChunk, None, None]:
        """As `chat`, a chunk at a time; see `stream`."""
        started = time.perf_counter()
        decoding = self._config(config, options)
        if self._chat_template is None:
            raise TemplateError(
                f"{self.folder} has no chat template; use generate() with a plain prompt"
            )
        text = self._chat_template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            **_checked_template_args(template_args or {}),
        )
        # The template has written the special tokens itself.
        return self._submit_ids(
            self.tokenizer.encode(text, add_special_tokens=False), decoding, started
        )

    def close(self) -> None:
        """Free the model; everything but another close() then raises ClosedError."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._engine.close()
                del self._engine

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _config(
        self, config: GenerationConfig | None, options: Mapping[str, Any]
    ) -> GenerationConfig:
        refuse_unknown_options(options)
        if config is not None and not isinstance(config, GenerationConfig):
            raise ConfigError(f"config must be a GenerationConfig, not {config!r}")
        merged = (config or GenerationConfig()).replace(**options)
        if merged.eos_token_id is None and not merged.ignore_eos:
            merged = merged.replace(eos_token_id=self.generation_config.eos_ids)
        return merged

    def _submit(
        self, prompt: Prompt, config: GenerationConfig
    ) -> Generator[StreamChunk, None, None]:
        started = time.perf_counter()
        if prompt == "":
            raise RequestError("the prompt is empty; give some text")
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return self._submit_ids(ids, config, started)

    def _submit_ids(
        self, prompt_token_ids: Sequence[int], config: GenerationConfig, started: float
    ) -> Generator[StreamChunk, None, None]:
        arrival = Arrival(started, time.perf_counter() - started)
        with self._lock:
            self._refuse_closed()
            request = self._engine.prepare(prompt_token_ids, config, started)
        return self._chunks(request, config, arrival)

    def _chunks(
        self, request: Request, config: GenerationConfig, arrival: Arrival
    ) -> Generator[StreamChunk, None, None]:
        mailbox: deque[StreamChunk] = deque()
        try:
            with self._lock:
                self._refuse_closed()
                self._mailboxes[request.request_id] = mailbox
                self._engine.add_request(request, config, arrival)
            while True:
                while not mailbox:
                    self._step(request, mailbox)
                chunk = mailbox.popleft()
                yield chunk
                if chunk.output is not None:
                    return
        finally:
            # Taken up by the next step: this may run in the garbage collector, in any thread.
            self._abandoned.append(request)

    def _step(self, request: Request, mailbox: deque[StreamChunk]) -> None:
        """Drive the engine by a step, unless another thread's step has filled the mailbox."""
        with self._lock:
            self._refuse_closed()
            if mailbox:
                return
            if not self._engine.is_known(request):
                raise OvgenError("the output was lost as another thread was interrupted; ask again")
            try:
                while self._abandoned:
                    self._drop(self._abandoned[0])
                    self._abandoned.popleft()
                for served, chunk in self._engine.step():
                    self._mailboxes[served.request_id].append(chunk)
            except BaseException:
                self._engine.recover()
                raise

    def _drop(self, request: Request) -> None:
        self._engine.abort(request)
        self._mailboxes.pop(request.request_id, None)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ClosedError("this LLM was closed; make a new one")


def _load_text(folder: Path) -> tuple[Tokenizer, ChatTemplate | None]:
    template = load_chat_template(folder)
    if template is not None:
        template.prepare()
    return load_tokenizer(folder), template


def is_one_prompt(prompt: Prompt | Sequence[Prompt]) -> bool:
    """Whether this is a string or token ids, not a list of prompts."""
    if isinstance(prompt, str):
        return True
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        raise RequestError(f"a prompt is a string or a list of token ids, not {prompt!r:.80}")
    return not any(isinstance(item, Iterable) for item in prompt)


def _checked_template_args(template_args: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in template_args:
        if not isinstance(name, str) or name in ("messages", "tools", "add_generation_prompt"):
            raise ConfigError(
                f"template_args must not hold {name!r}; it is for a template's further variables"
            )
    return template_args


def _last(stream: Iterable[StreamChunk]) -> RequestOutput:
    output = None
    for chunk in stream:
        output = chunk.output
    assert output is not None, "the last chunk holds the output"
    return output
