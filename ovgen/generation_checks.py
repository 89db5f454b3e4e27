"""The legal values of each option of a GenerationConfig, whatever the others say.

A check takes an option's name and value and returns the one form that a config keeps inside, or
raises ConfigError.
"""

from __future__ import annotations

import math
import numbers
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from ovgen.errors import ConfigError

Check = Callable[[str, Any], Any]


def shown(value: Any) -> str:
    """A value as one short line."""
    try:
        return f"{' '.join(repr(value).split()):.80}"
    except ValueError:  # a whole number too long for Python to print
        return f"a huge {type(value).__name__}"


def flag(name: str, value: Any) -> bool:
    """True or False, and nothing that merely counts as such."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, not {shown(value)}")
    return value


def whole(minimum: int, maximum: int | None = None, kind: str = "a whole number") -> Check:
    """A whole number in a range; numpy's are welcome, bools are mistakes."""
    wanted = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"

    def check(name: str, value: Any) -> int:
        try:
            number = None if isinstance(value, bool) else operator.index(value)
        except TypeError:
            number = None
        if number is None or number < minimum or (maximum is not None and number > maximum):
            raise ConfigError(f"{name} must be {kind} {wanted}, not {shown(value)}")
        return number

    return check


def real(wanted: str, test: Callable[[float], bool], advice: str = "") -> Check:
    """A number that passes a test, as a float; NaN is none."""

    def check(name: str, value: Any) -> float:
        try:
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            number = float(value) if is_number else math.nan
        except OverflowError:
            number = math.nan
        if math.isnan(number) or not test(number):
            raise ConfigError(f"{name} must be {wanted}, not {shown(value)}{advice}")
        return number

    return check


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """One token id or a list of them."""
    return tuple(_token_id_in_list(name, one) for one in _items(value, (value,)))


def strings(name: str, value: Any) -> tuple[str, ...]:
    """One string or a list of them, none empty."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (tuple, list)) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{name} must be a string or a list of strings, not {shown(value)}")
    if "" in texts:
        raise ConfigError(f"{name} must not hold an empty string: it would match everywhere")
    return tuple(texts)


def _items(value: Any, otherwise: Any) -> Any:
    return value if isinstance(value, (tuple, list)) else otherwise


def _token_sequence(name: str, value: Any) -> tuple[int, ...]:
    if not _items(value, ()):
        raise ConfigError(f"{name} must hold non-empty lists of token ids, not {shown(value)}")
    return token_ids(name, value)


def _token_sequences(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """Lists of token ids; their order means nothing, so that equal configs are equal."""
    return tuple(sorted({_token_sequence(name, ids) for ids in _items(value, (value,))}))


def _sequence_bias(name: str, value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    return _biases(name, value, _token_sequence, "[token ids, bias]")


def _logit_bias(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    def key(name: str, token_id: Any) -> int:
        # JSON has no other keys than strings; no vocabulary has ids of 20 digits.
        is_id = isinstance(token_id, str) and re.fullmatch("[0-9]{1,19}", token_id) is not None
        checked: int = _token_id_in_list(name, int(token_id) if is_id else token_id)
        return checked

    return _biases(name, value, key, "[token id, bias]")


def _biases(name: str, value: Any, key: Check, form: str) -> tuple[tuple[Any, float], ...]:
    pairs = list(value.items()) if isinstance(value, Mapping) else _items(value, (value,))
    found: dict[Any, float] = {}
    for pair in pairs:
        if len(_items(pair, ())) != 2:
            raise ConfigError(f"{name} must be a dict or a list of {form}, not {shown(value)}")
        biased = key(name, pair[0])
        if biased in found:
            raise ConfigError(f"{name} gives {shown(biased)} twice: keep one of the two")
        found[biased] = _bias(name, pair[1])
    return tuple(sorted(found.items()))


def _decay(name: str, value: Any) -> tuple[int, float]:
    if len(_items(value, ())) != 2:
        raise ConfigError(f"{name} must be (start, factor), not {shown(value)}")
    return whole(0)(f"{name}'s start", value[0]), _positive(f"{name}'s factor", value[1])


def _early_stopping(name: str, value: Any) -> bool | str:
    if isinstance(value, bool) or (isinstance(value, str) and value == "never"):
        return value
    raise ConfigError(f'{name} must be True, False or "never", not {shown(value)}')


def _prompt(name: str, value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str) and value:
        return value
    if _items(value, ()):
        return token_ids(name, value)
    raise ConfigError(f"{name} must be a non-empty string or list of ids, not {shown(value)}")


_token_id = whole(0, kind="a token id, a whole number")
_token_id_in_list = whole(0, kind="made of token ids, whole numbers")
_finite = real("a finite number", math.isfinite)
_positive = real("a finite number above 0", lambda x: 0 < x < math.inf)
_not_negative = real("a finite number of at least 0", lambda x: 0 <= x < math.inf)


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    raise ConfigError(f"{name} must be a string, not {shown(value)}")


_share = real("a number from 0 to 1", lambda x: 0 <= x <= 1)
_positive_share = real("a number above 0 and at most 1", lambda x: 0 < x <= 1)
_cutoff = real("a number of at least 0 and below 1", lambda x: 0 <= x < 1)
_bias = real("a finite number or -inf for each token", lambda x: x < math.inf)

CHECKS: dict[str, Check] = {
    "max_new_tokens": whole(1),
    "max_length": whole(1),
    "min_new_tokens": whole(0),
    "min_length": whole(0),
    "max_time": real("a number of seconds above 0", lambda x: 0 < x < math.inf),
    "do_sample": flag,
    "temperature": real(
        "a finite number above 0", lambda x: 0 < x < math.inf, "; use do_sample=False for greedy"
    ),
    "top_k": whole(0),
    "top_p": _positive_share,
    "min_p": _share,
    "typical_p": _positive_share,
    "epsilon_cutoff": _cutoff,
    "eta_cutoff": _cutoff,
    "top_n_sigma": _positive,
    "xtc_probability": _share,
    "xtc_threshold": real("a number above 0 and at most 0.5", lambda x: 0 < x <= 0.5),
    "mirostat_tau": _positive,
    "mirostat_eta": _positive_share,
    "seed": whole(0, 2**64 - 1),
    "repetition_penalty": _positive,
    "presence_penalty": _finite,
    "frequency_penalty": _finite,
    "penalty_last_n": whole(1),
    "no_repeat_ngram_size": whole(0),
    "dry_multiplier": _not_negative,
    "dry_base": real("a finite number of at least 1", lambda x: 1 <= x < math.inf),
    "dry_allowed_length": whole(1),
    "dry_penalty_last_n": whole(1),
    "dry_sequence_breakers": strings,
    "bad_words_ids": _token_sequences,
    "suppress_tokens": token_ids,
    "begin_suppress_tokens": token_ids,
    "forced_bos_token_id": _token_id,
    "forced_eos_token_id": token_ids,
    "exponential_decay_length_penalty": _decay,
    "sequence_bias": _sequence_bias,
    "logit_bias": _logit_bias,
    "num_beams": whole(1),
    "num_beam_groups": whole(1),
    "diversity_penalty": _not_negative,
    "length_penalty": _finite,
    "early_stopping": _early_stopping,
    "num_return_sequences": whole(1),
    "eos_token_id": token_ids,
    "stop_token_ids": token_ids,
    "ignore_eos": flag,
    "stop_strings": strings,
    "include_stop_str_in_output": flag,
    "skip_special_tokens": flag,
    "guidance_scale": _not_negative,
    "negative_prompt": _prompt,
    "token_healing": flag,
    "echo": flag,
    "logprobs": whole(0),
    "prompt_logprobs": whole(0),
    "priority": whole(-(2**31), 2**31 - 1),
    "cache_salt": _text,
}
