"""How one request is decoded. Field names are Hugging Face's; a config is frozen and valid."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ovgen.errors import ConfigError
from ovgen.generation_checks import CHECKS
from ovgen.generation_conflicts import (
    PENALTIES,
    RIVALS,
    SAMPLING_ONLY,
    conflicts,
    giving_way,
    without,
)
from ovgen.generation_file import read_options

# Given in several forms and kept in one: any spares the caller and the reader a cast.
TokenIds: TypeAlias = Any  # an id or a list of ids; kept as tuple[int, ...]
Decay: TypeAlias = Any  # a list or a tuple; kept as tuple[int, float]
SequenceBias: TypeAlias = Any  # a dict or a list of pairs; kept as tuple[tuple[ids, float], ...]
LogitBias: TypeAlias = Any  # the same; kept as tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """Options of one generation. None: the model's own, else what `resolve` says.

    Where the default is not None, it is that default which leaves the option to the model.
    Lists become tuples inside, and dicts tuples of pairs. An option that could have no effect is
    refused, as soon as that is certain; a value that changes nothing is always fine.

    Attributes:
        max_new_tokens: most tokens to generate, at least 1. None: until an end-of-sequence token
            or the end of the model's context.
        max_length: the same for prompt and output together; one of the two may be given.
        min_new_tokens: fewest tokens before an end-of-sequence token may come, at least 0.
        min_length: the same for prompt and output together; one of the two may be given.
        max_time: seconds after which the request ends with what it has.
        do_sample: draw the next token at random; otherwise the likeliest one is taken.
        temperature: divides the logits before drawing; above 0, 1 changes nothing.
        top_k: draw from the k likeliest tokens; 0 is off (Fan et al. 2018, arXiv 1805.04833).
        top_p: draw from the likeliest tokens that make up this probability, above 0 and at most
            1, where 1 is off (nucleus sampling, Holtzman et al. 2019, arXiv 1904.09751).
        min_p: drop tokens below this share of the likeliest one's probability, 0 (off) to 1
            (Nguyen et al. 2024, arXiv 2407.01082).
        typical_p: draw from the tokens of the most typical surprise that make up this probability,
            above 0 and at most 1, where 1 is off (Meister et al. 2022, arXiv 2202.00666).
        epsilon_cutoff: drop tokens below this probability, 0 (off) to below 1.
        eta_cutoff: the same, lower where the choice is open; 0 (off) to below 1 (both of Hewitt
            et al. 2022, arXiv 2210.15191).
        top_n_sigma: drop tokens whose logit is more than this many standard deviations below the
            highest; above 0 (Tang et al. 2024, arXiv 2411.07641).
        xtc_probability: how often to drop the likely tokens, all but the least likely of them; 0
            (off) to 1 (XTC, text-generation-webui). Not with beams.
        xtc_threshold: the probability from which XTC calls a token likely, above 0 and at most
            0.5; 0.1 where it is open.
        mirostat_tau: surprise to hold, in bits, above 0 (Mirostat v2, Basu et al. 2020,
            arXiv 2007.14966). Replaces all the cuts above; not with beams.
        mirostat_eta: how fast Mirostat adapts, above 0 and at most 1; 0.1 where it is open.
        seed: of the random draws, 0 to 2**64 - 1. None: a new one each time.
        repetition_penalty: divides the positive logits of tokens that were there before, and
            multiplies the negative ones; above 0, 1 is off (CTRL, arXiv 1909.05858).
        presence_penalty: taken once from the logit of a token that came before; 0 is off (OpenAI).
        frequency_penalty: taken for each time that a token came before; 0 is off (OpenAI).
        penalty_last_n: the tokens that the three penalties look back on, at least 1. None: all.
        no_repeat_ngram_size: no sequence of so many tokens comes twice; 0 is off.
        dry_multiplier: weight of the penalty on going on with a repetition (DRY,
            text-generation-webui); at least 0, 0 is off.
        dry_base: growth of that penalty with each repeated token, at least 1; 1.75 where open.
        dry_allowed_length: repeated tokens that cost nothing, at least 1; 2 where open.
        dry_penalty_last_n: the tokens that DRY looks back on, at least 1. None: all.
        dry_sequence_breakers: strings that no repetition goes across; where open newline, colon,
            double quote and asterisk.
        bad_words_ids: lists of token ids that must not come in a row.
        suppress_tokens: ids that never come.
        begin_suppress_tokens: ids that do not come first.
        forced_bos_token_id: the id that comes first.
        forced_eos_token_id: an id, or several, to end with where the maximum length is reached.
        exponential_decay_length_penalty: (start, factor): the end-of-sequence tokens get likelier
            by this factor with each token after the first ``start``.
        sequence_bias: {(ids): bias} or [[ids, bias], ...], added to the logit of the last id where
            the others have just come; -inf forbids it.
        logit_bias: {id: bias}, added to the logits at every step; -inf forbids the token.
        num_beams: beams to search with, at least 1, which is no beam search.
        num_beam_groups: groups of diverse beam search; divides ``num_beams`` (Vijayakumar et al.
            2016, arXiv 1610.02424). Needs ``diversity_penalty`` and no sampling.
        diversity_penalty: taken for each group that has just chosen the same token; at least 0.
        length_penalty: a beam's score is divided by its length to this power; 1 where open.
        early_stopping: True: end with ``num_beams`` ended beams; False: when a better one is
            unlikely; "never": when a better one is impossible.
        num_return_sequences: outputs for the prompt, at least 1; at most ``num_beams`` with beams.
        eos_token_id: token ids that end a sequence. None: those of the model's
            generation_config.json; an empty tuple: none at all.
        stop_token_ids: ids that end a sequence too, even with ``ignore_eos``.
        ignore_eos: go on after an end-of-sequence token, up to the maximum length.
        stop_strings: texts that end the output as soon as one appears in it.
        include_stop_str_in_output: keep the matched stop string at the end of the text.
        skip_special_tokens: leave special tokens out of the text.
        guidance_scale: weight of the prompt against ``negative_prompt``, at least 0; 1 is off
            (classifier-free guidance, Sanchez et al. 2023, arXiv 2306.17806).
        negative_prompt: text or token ids to steer away from. None: the prompt's last token.
        token_healing: take back the prompt's last token and let the model complete its text.
        echo: put the prompt before the output.
        logprobs: likeliest alternatives to tell beside each new token's log probability.
        prompt_logprobs: the same for the tokens of the prompt.
        priority: of requests that wait the one with the lowest number is served first; where the KV
            cache is full, those with higher ones give way.
        cache_salt: what was computed for a prompt is used again only for requests with the same
            salt, so that nobody can find out by the time it takes what others have asked.

    Raises:
        ConfigError: an option is out of range or would have no effect.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    max_time: float | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    penalty_last_n: int | None = None
    no_repeat_ngram_size: int | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: str | Sequence[str] | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    suppress_tokens: TokenIds | None = None
    begin_suppress_tokens: TokenIds | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: TokenIds | None = None
    exponential_decay_length_penalty: Decay | None = None
    sequence_bias: SequenceBias | None = None
    logit_bias: LogitBias | None = None
    num_beams: int | None = None
    num_beam_groups: int | None = None
    diversity_penalty: float | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    num_return_sequences: int | None = None
    eos_token_id: TokenIds | None = None
    stop_token_ids: TokenIds = ()
    ignore_eos: bool = False
    stop_strings: str | tuple[str, ...] | list[str] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    guidance_scale: float | None = None
    negative_prompt: str | Sequence[int] | None = None
    token_healing: bool = False
    echo: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    priority: int = 0
    cache_salt: str = ""

    def __post_init__(self) -> None:
        for name, default in _OPEN.items():
            value = getattr(self, name)
            if value is not None or default is not None:
                object.__setattr__(self, name, CHECKS[name](name, value))
        for conflict in conflicts(_values(self)):
            raise ConfigError(conflict.message)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a sequence, none where ``eos_token_id`` is not set."""
        ids = self.eos_token_id
        return ids if isinstance(ids, tuple) else ()

    def resolve(self, model: GenerationConfig | None = None) -> GenerationConfig:
        """This config with nothing left open but what no one limits.

        Args:
            model: the model's own options. They fill what this config leaves open, and give way
                where they would be useless or in the way: they are not the caller's wish.

        Raises:
            ConfigError: with the model's mode, one of this config's options has no effect.
        """
        own = _given(self)
        borrowed = {} if model is None else {n: v for n, v in _given(model).items() if n not in own}
        for names in RIVALS:
            if own.keys() & set(names):
                borrowed = without(borrowed, names)
        if not _completed(borrowed | own)["do_sample"]:
            borrowed = without(borrowed, SAMPLING_ONLY)  # also those that change nothing
        borrowed = giving_way(borrowed, lambda kept: _completed(kept | own))
        values = _completed(borrowed | own)
        for conflict in conflicts(values, is_resolved=True):
            raise ConfigError(conflict.message)
        return GenerationConfig(**values)

    def replace(self, **changes: Any) -> GenerationConfig:
        """A copy with some options changed; unknown names are refused."""
        refuse_unknown_options(changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All options as JSON-ready values, which make an equal config again."""
        values = {name: _as_lists(value) for name, value in _values(self).items()}
        if values["logit_bias"] is not None:
            values["logit_bias"] = {str(token): bias for token, bias in values["logit_bias"]}
        return values

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> GenerationConfig:
        """The defaults of a model folder: its generation_config.json, read as transformers does.

        Without that file, config.json may hold the options, as in old models; end-of-sequence ids
        are looked up there in any case. Options that have no effect are left out, and so are those
        that mean nothing here.

        Raises:
            ModelFormatError: a file is not JSON, or an option in it is illegal or not supported.
        """
        return cls(**read_options(Path(folder), _OPEN))


OPTION_NAMES = tuple(field.name for field in dataclasses.fields(GenerationConfig))

# Every option as it is where no one has said anything.
_OPEN: dict[str, Any] = {
    field.name: field.default for field in dataclasses.fields(GenerationConfig)
}
# What transformers takes where neither the caller nor the model says anything.
_DEFAULTS: dict[str, Any] = PENALTIES | {
    "do_sample": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "no_repeat_ngram_size": 0,
    "diversity_penalty": 0.0,
    "length_penalty": 1.0,
    "early_stopping": False,
    "guidance_scale": 1.0,
    "dry_multiplier": 0.0,
    "eos_token_id": (),
}
_SAMPLING_DEFAULTS: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "xtc_probability": 0.0,
}
# By the option that turns them on; each tool's own.
_SWITCHED_DEFAULTS: dict[str, dict[str, Any]] = {
    "xtc_probability": {"xtc_threshold": 0.1},
    "mirostat_tau": {"mirostat_eta": 0.1},
    "dry_multiplier": {
        "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_sequence_breakers": ("\n", ":", '"', "*"),
    },
}
# Names that other tools have for the same.
_ALIASES = {
    "stop": "stop_strings",
    "n": "num_return_sequences",
    "max_tokens": "max_new_tokens",
    "n_predict": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_last_n",
    "best_of": "num_beams",
    "beam_width": "num_beams",
}


def refuse_unknown_options(options: Mapping[str, Any]) -> None:
    """Raise ConfigError naming the first unknown option and the nearest right name."""
    for name in options:
        if name not in OPTION_NAMES:
            near = [_ALIASES[name]] if name in _ALIASES else _nearest(name)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(OPTION_NAMES)}"
            raise ConfigError(f"unknown generation option {name!r}; {hint}")


def _nearest(name: str) -> list[str]:
    return difflib.get_close_matches(name, OPTION_NAMES, n=1, cutoff=0.5)


def _values(config: GenerationConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in OPTION_NAMES}


def _given(config: GenerationConfig) -> dict[str, Any]:
    """The options that are not left open; where None cannot say so, the default does."""
    return {name: value for name, value in _values(config).items() if value != _OPEN[name]}


def _completed(given: dict[str, Any]) -> dict[str, Any]:
    """All options: those given, and the defaults of the mode that they make up."""
    values = _OPEN | _DEFAULTS | given
    if values["do_sample"]:
        values = values | _SAMPLING_DEFAULTS | given
    for switch, options in _SWITCHED_DEFAULTS.items():
        if values[switch]:
            values = values | options | given
    if values["mirostat_tau"] and values["top_k"] in SAMPLING_ONLY["top_k"]:
        values["top_k"] = 0  # Mirostat cuts by itself: 50 is the default, not a wish
    return values


def _as_lists(value: Any) -> Any:
    return [_as_lists(one) for one in value] if isinstance(value, tuple) else value
