"""From a prompt and a config to a checked request, with the decoder that will choose its tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from collections.abc import Sequence as Sequences
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

from ovgen.decoding.candidates import Workspace
from ovgen.decoding.processing import Processing, UserProcessor
from ovgen.decoding.random import new_seed
from ovgen.engine.beam_decoder import BeamDecoder
from ovgen.engine.block_manager import BlockManager
from ovgen.engine.decoder import Decoder, RowReader
from ovgen.engine.output_processor import Arrival, OutputProcessor
from ovgen.engine.sampling_decoder import SamplingDecoder
from ovgen.engine.sequence import Request, Sequence
from ovgen.errors import ConfigError, RequestError
from ovgen.generation_config import GenerationConfig
from ovgen.text.prompt_encoder import plain_token_ids


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a request begins with, in tokens.

    Attributes:
        token_ids: the prompt.
        negative_token_ids: the negative prompt, for guidance; its last token if None.
        first_token_ids: what the first token of the output may be, if not any (token healing).
        breakers: token sequences that break repetitions, for DRY.
        user_processors: the caller's own logits processors.
    """

    token_ids: Sequences[int]
    negative_token_ids: Sequences[int] | None = None
    first_token_ids: Collection[int] = ()
    breakers: Collection[tuple[int, ...]] = ()
    user_processors: Sequences[UserProcessor] = ()


class RequestBuilder:
    """Makes the requests of one engine.

    Args:
        output_processor: finds stop strings for beam searches.
        workspace: shared by all requests.
        ids: gives requests and sequences their ids.
        context_length: most tokens of prompt and output together.
        vocab_size: token ids are below it.

    Attributes:
        blocks: of the KV cache, where a request has to fit in it.
    """

    def __init__(
        self,
        output_processor: OutputProcessor,
        workspace: Workspace,
        ids: Iterator[int],
        *,
        context_length: int,
        vocab_size: int,
    ) -> None:
        self._output_processor = output_processor
        self._workspace = workspace
        self._ids = ids
        self._context_length = context_length
        self._vocab_size = vocab_size
        self.blocks: BlockManager | None = None

    def generation(self, prompt: Prompt, config: GenerationConfig, arrival: Arrival) -> Request:
        """A request to generate; see `Engine.prepare`."""
        token_ids = self._checked(prompt.token_ids, room=1)
        config = config.resolve()
        self._check_config(config)
        first = self._first_sequence(token_ids, prompt, config)
        max_output_tokens = self._max_output_tokens(first, config)
        endings = () if config.ignore_eos else config.eos_ids
        # Ids that the model does not have never come.
        ending_ids = frozenset(
            token_id
            for token_id in (*endings, *config.stop_token_ids)
            if token_id < self._vocab_size
        )
        seed = None
        if config.do_sample:
            seed = new_seed() if config.seed is None else config.seed
        processing = Processing(
            config,
            num_prompt_tokens=len(token_ids),
            ending_ids=ending_ids,
            max_output_tokens=max_output_tokens,
            breakers=prompt.breakers,
            first_token_ids=prompt.first_token_ids,
            user_processors=prompt.user_processors,
        )
        has_beams = (config.num_beams or 1) > 1
        return Request(
            request_id=next(self._ids),
            prompt_token_ids=token_ids,
            max_output_tokens=max_output_tokens,
            ending_ids=ending_ids,
            deadline=None if config.max_time is None else arrival.time + config.max_time,
            sequences=[first],
            decoder=self._decoder(
                token_ids, config, arrival, processing, seed or 0, ending_ids, max_output_tokens
            ),
            num_prompt_logprobs=config.prompt_logprobs,
            score_from=None if config.prompt_logprobs is None else 0,
            num_shared_tokens=len(token_ids),
            is_beam_search=has_beams,
            seed=seed,
            priority=config.priority,
            cache_salt=config.cache_salt.encode("utf-8", "surrogatepass"),
        )

    def scores(self, token_ids: Sequences[Sequences[int]], num_context: Sequences[int]) -> Request:
        """A request to score; see `Engine.prepare_scores`."""
        texts = [self._checked(text, room=0) for text in token_ids]
        self._refuse_too_many(texts)
        # The token before the first that is scored is computed for each: its logits are wanted.
        shared = max(0, min(_num_common(texts), *num_context) - 1)
        return Request(
            request_id=next(self._ids),
            prompt_token_ids=texts[0],
            max_output_tokens=0,
            ending_ids=frozenset(),
            deadline=None,
            sequences=[
                Sequence(next(self._ids), text, index=place) for place, text in enumerate(texts)
            ],
            num_prompt_logprobs=0,
            score_from=shared,
            num_shared_tokens=shared,
        )

    def _decoder(
        self,
        token_ids: tuple[int, ...],
        config: GenerationConfig,
        arrival: Arrival,
        processing: Processing,
        seed: int,
        ending_ids: frozenset[int],
        max_output_tokens: int,
    ) -> Decoder:
        if (config.num_beams or 1) == 1:
            return SamplingDecoder(config, RowReader(config, processing, self._workspace), seed)
        new_text = partial(self._output_processor.new_text, token_ids, config, arrival)
        reader = RowReader(
            config, processing, self._workspace, new_text if config.stop_strings else None
        )
        return BeamDecoder(
            config,
            reader,
            seed,
            num_endings=len(ending_ids),
            max_output_tokens=max_output_tokens,
        )

    def _first_sequence(
        self, token_ids: tuple[int, ...], prompt: Prompt, config: GenerationConfig
    ) -> Sequence:
        sequence = Sequence(next(self._ids), token_ids)
        if config.guidance_scale not in (None, 1):
            given = prompt.negative_token_ids
            negative = token_ids[-1:] if given is None else self._checked(given, room=1)
            sequence.negative = Sequence(next(self._ids), negative)
            sequence.negative.output_token_ids = sequence.output_token_ids
        return sequence

    def _checked(self, prompt: Sequences[int], *, room: int) -> tuple[int, ...]:
        token_ids = plain_token_ids(prompt)
        if not token_ids:
            raise RequestError("the prompt is empty; give at least one token")
        if len(token_ids) + room > self._context_length:
            raise RequestError(
                f"the prompt has {len(token_ids)} tokens; the model's context of "
                f"{self._context_length} must hold it"
                f"{' and at least one new token' if room else ''}: shorten it"
            )
        if max(token_ids) >= self._vocab_size or min(token_ids) < 0:
            bad = next(token for token in token_ids if not 0 <= token < self._vocab_size)
            raise RequestError(
                f"the prompt holds token id {bad}; the model knows 0 to {self._vocab_size - 1}"
            )
        return token_ids

    def _refuse_too_many(self, texts: Sequences[tuple[int, ...]]) -> None:
        if self.blocks is None:
            return
        wanted = sum(self.blocks.num_blocks_for(len(text)) for text in texts)
        if wanted > self.blocks.num_blocks:
            size = self.blocks.block_size
            raise RequestError(
                f"{len(texts)} texts of {sum(map(len, texts))} tokens do not fit into the KV cache "
                f"of {self.blocks.num_blocks * size} tokens at once; score fewer of them in one "
                "call, or raise kv_cache_tokens"
            )

    def _max_output_tokens(self, first: Sequence, config: GenerationConfig) -> int:
        """The tokens asked for, or as many as there is room for."""
        num_prompt = len(first.prompt_token_ids)
        longest = max(len(row.prompt_token_ids) for row in first.rows)
        room = self._context_length - longest
        place = f"the model's context of {self._context_length}"
        num_sequences = max(config.num_beams or 1, config.num_return_sequences or 1)
        fitting = self._fitting_tokens(first, num_sequences)
        if fitting is not None and fitting < room:
            assert self.blocks is not None, "something fits or not"
            room = fitting
            place = f"the KV cache of {self.blocks.num_blocks * self.blocks.block_size} tokens"
            place += f", for {num_sequences} sequences," if num_sequences > 1 else ""
            if room < 1:
                raise RequestError(
                    f"a prompt of {longest} tokens is too long: {place} has no room for it and at "
                    "least one new token; shorten it, or raise kv_cache_tokens"
                )
        wanted = config.max_new_tokens
        if config.max_length is not None:
            wanted = config.max_length - num_prompt
            if wanted < 1:
                raise ConfigError(
                    f"max_length is {config.max_length}, but the prompt alone has "
                    f"{num_prompt} tokens: raise it, or give max_new_tokens"
                )
        if wanted is not None and wanted > room:
            name = "max_new_tokens" if config.max_length is None else "max_length"
            raise ConfigError(
                f"{name} is {getattr(config, name)}, but after a prompt of {longest} "
                f"tokens {place} has room for {room}"
            )
        return room if wanted is None else wanted

    def _fitting_tokens(self, first: Sequence, num_sequences: int) -> int | None:
        """New tokens for which there are blocks when nothing else is computed."""
        if self.blocks is None:
            return None
        size = self.blocks.block_size
        prompts = [len(row.prompt_token_ids) for row in first.rows]
        # Full blocks of the prompts are shared; all others a sequence has to itself.
        shared = sum(num // size for num in prompts)
        own = (self.blocks.num_blocks - shared) // (num_sequences * len(prompts))
        return own * size - max(num % size for num in prompts)

    def _check_config(self, config: GenerationConfig) -> None:
        """ConfigError for a token id, or a number of alternatives, that the model does not have."""
        for name, token_ids in _token_ids_of(config):
            for token_id in token_ids:
                if token_id >= self._vocab_size:
                    raise ConfigError(
                        f"{name} holds token id {token_id}; the model knows 0 to "
                        f"{self._vocab_size - 1}"
                    )
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(config, name) or 0) > self._vocab_size:
                raise ConfigError(
                    f"{name} is {getattr(config, name)}, but the model has only "
                    f"{self._vocab_size} tokens"
                )


def _token_ids_of(config: GenerationConfig) -> list[tuple[str, Iterable[int]]]:
    """The options whose token ids the model has to have."""
    forced_bos = config.forced_bos_token_id
    return [
        ("logit_bias", [token_id for token_id, _ in config.logit_bias or ()]),
        ("sequence_bias", [i for sequence, _ in config.sequence_bias or () for i in sequence]),
        ("bad_words_ids", [i for word in config.bad_words_ids or () for i in word]),
        ("suppress_tokens", config.suppress_tokens or ()),
        ("begin_suppress_tokens", config.begin_suppress_tokens or ()),
        ("forced_bos_token_id", () if forced_bos is None else (forced_bos,)),
        ("forced_eos_token_id", config.forced_eos_token_id or ()),
    ]


def _num_common(texts: Sequences[tuple[int, ...]]) -> int:
    """Tokens that all texts begin with."""
    return sum(
        1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False))
    )
