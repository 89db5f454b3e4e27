"""The front door: one loaded model that answers prompts and chats."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast, overload

from ovgen.decoding.processing import UserProcessor
from ovgen.engine.engine import Engine
from ovgen.engine.handle import GenerationHandle, TokenStream
from ovgen.engine.mailbox import Submission
from ovgen.engine.output_processor import Arrival, OutputProcessor
from ovgen.engine.request_builder import Prompt as TokenPrompt
from ovgen.engine.service import EngineService
from ovgen.engine_config import EngineConfig
from ovgen.errors import ConfigError, QueueFullError, RequestError, TemplateError
from ovgen.generation_config import GenerationConfig, refuse_unknown_options
from ovgen.model.backends import Backends
from ovgen.model.compiled_cache import CompiledCache
from ovgen.model.resolve import compiled_cache_folder, resolve_folder
from ovgen.outputs import PerplexityOutput, RequestOutput, ScoreOutput
from ovgen.paging import PagingUpgrade
from ovgen.scoring import ScoredText, continuation, windows
from ovgen.text.chat_template import ChatTemplate, load_chat_template
from ovgen.text.prompt_encoder import PromptEncoder, plain_token_ids
from ovgen.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from ovgen.session.session import Session

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


class LLM:
    """A model, ready to generate.

    May be used from any number of threads, and by several streams at once: a thread of its own
    serves all requests, first come, first served. For asyncio there is `AsyncLLM`.

    Args:
        model: an alias of the catalog, an IR folder, a ``.gguf`` file, a folder that transformers
            saved, or a Hugging Face repository id. Downloads and exports are kept in
            ``OVGEN_HOME``.
        device: an OpenVINO device name.
        precision: ``default``, or ``exact`` for float32 throughout.
        weights: how a model that is no IR yet is exported, as `ovgen export --weights`.
        properties: OpenVINO compile properties, passed on as they are.
        profile: what `ovgen tune` has measured to use: ``auto``, whatever was tuned last for this
            machine; ``none``; ``latency`` or ``throughput``. Properties of your own win over it.
        attention_backend: ``paged`` (many requests at once), ``stateful`` (one after the other), or
            ``auto``: stateful first, for it is ready sooner, and paged from the second request on.
        token_budget: most tokens in one step; longer prompts are computed in chunks of it, which
            takes less memory but more time. None: what the backend does best.
        max_num_seqs: requests that are computed at once.
        kv_cache_tokens: tokens that the paged KV cache holds.
        kv_cache_size: the same in GB; None for both: eight contexts of the model, or half of the
            free memory where that is less. The system gives the memory as it is first used.
        kv_cache_precision: ``u8``, ``f16``, ``bf16`` or ``f32``; None: what the device prefers.
        prefix_caching: whether a prompt's beginning is taken from where it was computed before.
        max_waiting_requests: requests that may wait for their turn; None for any number.
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
        profile: str = "auto",
        attention_backend: str = "auto",
        token_budget: int | None = None,
        max_num_seqs: int | None = None,
        kv_cache_tokens: int | None = None,
        kv_cache_size: float | None = None,
        kv_cache_precision: str | None = None,
        prefix_caching: bool = True,
        max_waiting_requests: int | None = None,
        offline: bool | None = None,
    ) -> None:
        config = EngineConfig(
            device=device,
            precision=precision,
            properties=properties or {},
            profile=profile,
            attention_backend=attention_backend,
            token_budget=token_budget,
            max_num_seqs=max_num_seqs,
            kv_cache_tokens=kv_cache_tokens,
            kv_cache_size=kv_cache_size,
            kv_cache_precision=kv_cache_precision,
            prefix_caching=prefix_caching,
            max_waiting_requests=max_waiting_requests,
        )
        started = time.perf_counter()
        self.folder = resolve_folder(model, weights=weights, offline=offline)
        self.generation_config = GenerationConfig.from_pretrained(self.folder)
        # The tokenizer is parsed while the device compiles.
        with ThreadPoolExecutor(1) as pool:
            text = pool.submit(_load_text, self.folder)
            backends = Backends(self.folder, config, CompiledCache(compiled_cache_folder()))
            backend = backends.first()
            self.tokenizer, self._chat_template = text.result()
        self.context_length = backend.context_length
        self.vocab_size = backend.vocab_size
        self.load_time = time.perf_counter() - started
        self._prompts = PromptEncoder(self.tokenizer)
        self._service = EngineService(
            Engine(
                backend.runner,
                OutputProcessor(self.tokenizer, load_time=self.load_time),
                context_length=backend.context_length,
                vocab_size=backend.vocab_size,
                token_budget=backend.token_budget,
                has_prefix_cache=prefix_caching,
            ),
            max_waiting_requests,
        )
        self._max_waiting_requests = max_waiting_requests
        self._upgrade = PagingUpgrade(backends, self._service)

    @property
    def attention_backend(self) -> str:
        """What serves at the moment: ``paged`` or ``stateful``."""
        return self._service.open().attention_backend

    @overload
    def generate(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        logits_processors: Sequence[UserProcessor] = (),
        **options: Any,
    ) -> RequestOutput: ...

    @overload
    def generate(
        self,
        prompt: Sequence[Prompt],
        config: GenerationConfig | None = None,
        *,
        logits_processors: Sequence[UserProcessor] = (),
        **options: Any,
    ) -> list[RequestOutput]: ...

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        config: GenerationConfig | None = None,
        *,
        logits_processors: Sequence[UserProcessor] = (),
        **options: Any,
    ) -> RequestOutput | list[RequestOutput]:
        """Complete a prompt, or each of a list of prompts.

        Args:
            prompt: a string or a list of token ids; or a list of such prompts.
            config: how to decode; what it leaves open is the model's own.
            logits_processors: functions ``(token_ids, logits) -> logits`` of one sequence: its
                prompt and output [num_tokens] int64, the logits of its next token [vocab] float32,
                which may be changed in place. Or objects with a method ``start()`` that gives a
                streaming processor with state (see `ovgen.decoding.processing`). They come after
                all other processors, and before temperature and truncation. They are called in the
                LLM's own thread, which every request waits for, and must not use the LLM.
            **options: single options of GenerationConfig.

        Returns:
            One RequestOutput for one prompt, a list in the same order for a list.

        Raises:
            RequestError: a prompt that cannot be served, or no token is left to choose.
            ConfigError: an option that is unknown, out of range or without effect.
        """
        decoding = self._config(config, options)
        is_one = is_one_prompt(prompt)
        prompts = [cast("Prompt", prompt)] if is_one else cast("Sequence[Prompt]", prompt)
        outputs = self._outputs(
            [self._prepare(one, decoding, logits_processors) for one in prompts]
        )
        return outputs[0] if is_one else outputs

    def submit(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        logits_processors: Sequence[UserProcessor] = (),
        **options: Any,
    ) -> GenerationHandle:
        """As `generate`, without waiting for the output.

        The request is served in the background for as long as the handle is kept: ask it for the
        ``result()`` or for a ``stream()`` at any time, or have it end with ``abort()``. Errors of
        the prompt and of the options are raised here, others by the handle.
        """
        return self._submit(self._prepare(prompt, self._config(config, options), logits_processors))

    def stream(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        logits_processors: Sequence[UserProcessor] = (),
        **options: Any,
    ) -> TokenStream:
        """As `generate`, a chunk at a time; the last chunk holds the whole output.

        The work begins at once. Closing or dropping the stream stops it, and ``abort`` ends it with
        what there is. Errors of the prompt and of the options are raised here, not by the first
        chunk. Of several samples each chunk names its own by ``index``; a beam search streams what
        all beams that can still be the best have in common.
        """
        prepared = self._prepare(prompt, self._config(config, options), logits_processors)
        return self._submit(prepared, has_stream=True).stream()

    def chat(
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
        """Answer a chat.

        Args:
            messages: dicts with ``role`` and ``content``, oldest first.
            config: how to decode; what it leaves open is the model's own.
            tools: JSON schemas of functions that the template tells the model of.
            add_generation_prompt: end the prompt where the assistant's turn begins.
            template_args: further variables of the chat template.
            logits_processors: see `generate`.
            **options: single options of GenerationConfig.

        Raises:
            TemplateError: the model has no chat template, or it refuses the messages.
        """
        prepared = self._prepare_chat(
            messages,
            self._config(config, options),
            logits_processors,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            template_args=template_args,
        )
        return self._outputs([prepared])[0]

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
    ) -> TokenStream:
        """As `chat`, a chunk at a time; see `stream`."""
        prepared = self._prepare_chat(
            messages,
            self._config(config, options),
            logits_processors,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            template_args=template_args,
        )
        return self._submit(prepared, has_stream=True).stream()

    def session(self, seed: int | None = None) -> Session:
        """A conversation that is gone on with, forked and saved: of text, or of messages.

        Args:
            seed: that those of its turns are derived from; None: one from the system's entropy.
        """
        from ovgen.session.session import new_session

        return new_session(self, seed)

    def load_session(self, path: str | os.PathLike[str]) -> Session:
        """A session that was saved, where it was left: its next turn is as it would have been.

        What was saved of the KV cache is used where it fits this LLM's, and computed anew in the
        next turn otherwise.

        Args:
            path: of a file that `Session.save` wrote.

        Raises:
            ModelFormatError: the file is damaged, or no session of this version.
            RequestError: it is a session of another model.
            StorageError: it cannot be read.
        """
        from ovgen.session.session import load_session

        return load_session(self, path)

    def score(self, prompt: Prompt, continuations: Sequence[Prompt]) -> list[ScoreOutput]:
        """The log-probability of each continuation of a prompt, which is computed once.

        Args:
            prompt: a string or token ids.
            continuations: of the same kind. Strings are tokenized together with the prompt; a token
                that holds the end of the prompt as well belongs to the continuation.

        Returns:
            One ScoreOutput a continuation, in the same order.

        Raises:
            RequestError: an empty prompt or continuation, or one beyond the model's context.
        """
        if isinstance(continuations, str) or not len(continuations):
            raise RequestError(f"continuations must be a list with one at least: {continuations!r}")
        return self._scores([continuation(self.tokenizer, prompt, one) for one in continuations])

    def perplexity(
        self, text: Prompt, *, stride: int | None = None, max_length: int | None = None
    ) -> PerplexityOutput:
        """How well the model predicts a text of any length, as Hugging Face's guide computes it.

        The text is read in windows of ``max_length`` tokens that begin ``stride`` tokens apart;
        each token but the first is predicted once, in the first window that has it. Memory does not
        grow with the text.

        Args:
            text: a string or token ids, two at least.
            stride: tokens that are new in a window; half of ``max_length`` by default. Smaller
                ones give each token more context, and take longer.
            max_length: tokens in a window; by default the model's context, but 2,048 at most.

        Raises:
            RequestError: fewer than two tokens.
            ConfigError: a stride or length out of range.
        """
        token_ids = self.tokenizer.encode(text) if isinstance(text, str) else plain_token_ids(text)
        nll = 0.0
        for window in windows(token_ids, self.context_length, max_length, stride):
            (scored,) = self._scores([window])
            nll -= scored.logprob
        return PerplexityOutput(nll, len(token_ids) - 1)

    def close(self) -> None:
        """Free the model; everything but another close() then raises ClosedError.

        Waits for the step under way. Requests that have not ended do so with ClosedError, after the
        chunks that are there.
        """
        self._service.close()
        self._upgrade.close()

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
        return (config or GenerationConfig()).replace(**options).resolve(self.generation_config)

    def _prepare_chat(
        self,
        messages: Sequence[Message],
        config: GenerationConfig,
        logits_processors: Sequence[UserProcessor],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        template_args: Mapping[str, Any] | None,
    ) -> Submission:
        started = time.perf_counter()
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
        return self._prepare(text, config, logits_processors, started, is_rendered=True)

    def _prepare(
        self,
        prompt: Prompt,
        config: GenerationConfig,
        logits_processors: Sequence[UserProcessor],
        started: float | None = None,
        *,
        is_rendered: bool = False,
    ) -> Submission:
        """A checked request, which nobody serves yet; ``config`` is resolved."""
        started = time.perf_counter() if started is None else started
        engine = self._service.open()
        # A chat template has written the special tokens itself.
        encoded = self._prompts.encode(prompt, config, add_special_tokens=not is_rendered)
        config = self._within_context(config, len(encoded.token_ids))
        arrival = Arrival(
            started,
            time.perf_counter() - started,
            echo=encoded.echo,
            num_hidden_characters=encoded.num_hidden_characters,
        )
        request = engine.prepare(
            TokenPrompt(
                encoded.token_ids,
                encoded.negative_token_ids,
                encoded.first_token_ids,
                encoded.breakers,
                tuple(logits_processors),
            ),
            config,
            arrival,
        )
        return Submission(request, config, arrival)

    def _submit(self, prepared: Submission, *, has_stream: bool = False) -> GenerationHandle:
        (handle,) = self._service.submit([prepared], has_stream=has_stream)
        self._upgrade.notice(1)
        return handle

    def _outputs(self, prepared: Sequence[Submission]) -> list[RequestOutput]:
        """What becomes of requests, in their order; they are served together."""
        handles: list[GenerationHandle] = []
        size = self._max_waiting_requests or len(prepared) or 1
        try:
            for start in range(0, len(prepared), size):
                handles += self._submit_all(prepared[start : start + size], handles)
            return [handle.result() for handle in handles]
        finally:  # of an error or an interrupt: nobody waits for the others
            for handle in handles:
                handle.close()

    def _submit_all(
        self, prepared: Sequence[Submission], before: Sequence[GenerationHandle]
    ) -> list[GenerationHandle]:
        """Where the queue is full, they wait for those before them in the same call."""
        while True:
            try:
                handles = self._service.submit(prepared)
            except QueueFullError:
                unfinished = next((handle for handle in before if not handle.done), None)
                if unfinished is None:
                    raise
                unfinished.result()
            else:
                self._upgrade.notice(len(handles))
                return handles

    def _within_context(self, config: GenerationConfig, num_prompt: int) -> GenerationConfig:
        """The model's own length, where nobody else gave one, ends with its context."""
        own, room = self.generation_config, self.context_length - num_prompt
        if config.max_new_tokens == own.max_new_tokens and (own.max_new_tokens or 0) > room > 0:
            return config.replace(max_new_tokens=room)
        if config.max_length == own.max_length and (own.max_length or 0) > self.context_length:
            return config.replace(max_length=self.context_length)
        return config

    def _scores(self, texts: Sequence[ScoredText]) -> list[ScoreOutput]:
        arrival = Arrival(time.perf_counter(), 0.0)
        request = self._service.open().prepare_scores(
            [text.token_ids for text in texts], [text.num_context for text in texts]
        )
        self._outputs([Submission(request, GenerationConfig(), arrival)])
        scored = []
        for sequence, text in zip(request.sequences, texts, strict=True):
            # The sequences' records begin with the first token that any of them has scored.
            first = text.num_context - 1 - (request.score_from or 0)
            logprobs = tuple(token.logprob for token in sequence.prompt_logprobs[first:])
            scored.append(ScoreOutput(text.token_ids[text.num_context :], logprobs))
        return scored


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
