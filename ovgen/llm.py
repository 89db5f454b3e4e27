"""The front door: one loaded model that answers prompts and chats."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, cast, overload

from ovgen.decoding.processing import UserProcessor
from ovgen.engine.engine import Engine
from ovgen.engine.output_processor import Arrival, OutputProcessor
from ovgen.engine.request_builder import Prompt as TokenPrompt
from ovgen.engine.service import EngineService, TokenStream
from ovgen.engine_config import EngineConfig
from ovgen.errors import ConfigError, RequestError, TemplateError
from ovgen.generation_config import GenerationConfig, refuse_unknown_options
from ovgen.model.compiled_cache import CompiledCache
from ovgen.model.loader import load_model
from ovgen.model.resolve import compiled_cache_folder, resolve_folder
from ovgen.model.stateful_runner import StatefulRunner
from ovgen.outputs import PerplexityOutput, RequestOutput, ScoreOutput
from ovgen.scoring import ScoredText, continuation, windows
from ovgen.text.chat_template import ChatTemplate, load_chat_template
from ovgen.text.prompt_encoder import PromptEncoder, plain_token_ids
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
        self.folder = resolve_folder(model, weights=weights, offline=offline)
        self.generation_config = GenerationConfig.from_pretrained(self.folder)
        # The tokenizer is parsed while the device compiles.
        with ThreadPoolExecutor(1) as pool:
            text = pool.submit(_load_text, self.folder)
            loaded = load_model(self.folder, config, CompiledCache(compiled_cache_folder()))
            self.tokenizer, self._chat_template = text.result()
        self.context_length = loaded.context_length
        self.load_time = time.perf_counter() - started
        self._prompts = PromptEncoder(self.tokenizer)
        runner = StatefulRunner(loaded.compiled, loaded.blob)
        self._service = EngineService(
            Engine(
                runner,
                OutputProcessor(self.tokenizer, load_time=self.load_time),
                context_length=loaded.context_length,
                vocab_size=loaded.vocab_size,
                token_budget=min(token_budget, runner.max_batch_tokens or token_budget),
            )
        )

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
                all other processors, and before temperature and truncation.
            **options: single options of GenerationConfig.

        Returns:
            One RequestOutput for one prompt, a list in the same order for a list.

        Raises:
            RequestError: a prompt that cannot be served, or no token is left to choose.
            ConfigError: an option that is unknown, out of range or without effect.
        """
        decoding = self._config(config, options)
        if is_one_prompt(prompt):
            return self._submit(cast("Prompt", prompt), decoding, logits_processors).result()
        streams = [
            self._submit(one, decoding, logits_processors)
            for one in cast("Sequence[Prompt]", prompt)
        ]
        try:
            return [stream.result() for stream in streams]
        finally:
            for stream in streams:
                stream.close()

    def stream(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        logits_processors: Sequence[UserProcessor] = (),
        **options: Any,
    ) -> TokenStream:
        """As `generate`, a chunk at a time; the last chunk holds the whole output.

        Closing the stream stops the work, and ``abort`` ends it with what there is. Errors of the
        prompt and of the options are raised here, not by the first chunk. Of several samples each
        chunk names its own by ``index``; a beam search streams what all beams that can still be
        the best have in common.
        """
        return self._submit(prompt, self._config(config, options), logits_processors)

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
        return self.stream_chat(
            messages,
            config,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            template_args=template_args,
            logits_processors=logits_processors,
            **options,
        ).result()

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
        return self._submit(text, decoding, logits_processors, started, is_rendered=True)

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
        """Free the model; everything but another close() then raises ClosedError."""
        self._service.close()

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

    def _submit(
        self,
        prompt: Prompt,
        config: GenerationConfig,
        logits_processors: Sequence[UserProcessor],
        started: float | None = None,
        *,
        is_rendered: bool = False,
    ) -> TokenStream:
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
        return self._service.submit(request, config, arrival)

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
        self._service.submit(request, GenerationConfig(), arrival).result()
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
