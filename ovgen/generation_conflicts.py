"""Which options of a GenerationConfig cannot stand side by side, and which of them give way.

Rules over checked values, where None always means "left open".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from ovgen.generation_checks import shown

Values = Mapping[str, Any]


class Conflict(NamedTuple):
    """Options that cannot stand side by side.

    Attributes:
        message: the whole error.
        options: those that may give way where a model's file, not the caller, has set them.
        is_useless: the first one merely has no effect; otherwise the options contradict.
    """

    message: str
    options: tuple[str, ...]
    is_useless: bool = True


# The options that have no effect outside their mode -> the values that change nothing anyway, and
# are therefore fine in any mode. 50 is Hugging Face's default of top_k, and in many models' files.
SAMPLING_ONLY: dict[str, tuple[Any, ...]] = {
    "temperature": (1.0,),
    "top_k": (0, 50),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "top_n_sigma": (),
    "xtc_probability": (0.0,),
    "xtc_threshold": (),
    "mirostat_tau": (),
    "mirostat_eta": (),
    "seed": (),
}
BEAMS_ONLY: dict[str, tuple[Any, ...]] = {
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "length_penalty": (1.0,),
    "early_stopping": (False,),
}
# Mirostat chooses how much to cut by itself.
TRUNCATIONS = (
    *("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("top_n_sigma", "xtc_probability"),
)
PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
# Two ways to say one thing.
RIVALS = (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length"))
# The option that turns others on -> those. No model's file of Hugging Face's has any of them, so
# that a switch left open is off.
SWITCHES = {
    "xtc_probability": ("xtc_threshold",),
    "mirostat_tau": ("mirostat_eta",),
    "dry_multiplier": (
        *("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    ),
}


def conflicts(values: Values, *, is_resolved: bool = False) -> Iterator[Conflict]:
    """What is wrong between checked options, as far as it is decided already.

    Args:
        values: every option by name; None is open, and gives rise to no conflict.
        is_resolved: nothing can come from a model's file any more.
    """
    for rule in _RULES:
        yield from rule(values)
    if (
        is_resolved
        and values["forced_eos_token_id"]
        and values["max_new_tokens"] is values["max_length"] is None
    ):
        yield _useless("forced_eos_token_id", "without a length", "max_new_tokens or max_length")


def giving_way(
    options: dict[str, Any],
    complete: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    useless_only: bool = False,
) -> dict[str, Any]:
    """The options of a model's file without those in a conflict, or in one for no effect."""
    while True:
        for conflict in conflicts(complete(options), is_resolved=not useless_only):
            if options.keys() & conflict.options and (conflict.is_useless or not useless_only):
                options = without(options, conflict.options)
                break
        else:
            return options


def without(options: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The options but for some."""
    return {name: value for name, value in options.items() if name not in names}


def _useless(name: str, why: str, remedy: str, value: Any = None) -> Conflict:
    given = name if value is None else f"{name}={shown(value)}"
    return Conflict(f"{given} has no effect {why}: give {remedy} or leave it out", (name,))


def _contradiction(message: str, *options: str) -> Conflict:
    return Conflict(message, options, is_useless=False)


def _lengths(values: Values) -> Iterator[Conflict]:
    for names in RIVALS:
        # A minimum of 0 says nothing.
        if all(values[name] for name in names):
            given = " and ".join(f"{name}={values[name]}" for name in names)
            yield _contradiction(f"{given} say the same twice: give one of the two", *names)
    for low, high, least in (
        ("min_new_tokens", "max_new_tokens", 0),
        ("min_length", "max_length", 0),
        ("min_new_tokens", "max_length", 1),  # which has at least one token of prompt in it
    ):
        if values[low] and values[high] and values[low] + least > values[high]:
            yield _contradiction(
                f"{low}={values[low]} does not fit into {high}={values[high]}: "
                f"{low} may be at most {values[high] - least} here",
                *(low, high),
            )
    if _cannot_end(values):
        for name in ("min_new_tokens", "min_length"):
            if values[name]:
                why = "where no token can end a sequence"
                yield _useless(name, why, "eos_token_id or stop_token_ids")


def _endings(values: Values) -> Iterator[Conflict]:
    if values["ignore_eos"] and values["eos_token_id"]:
        ids = list(values["eos_token_id"])
        yield _contradiction(
            f"ignore_eos makes eos_token_id={shown(ids)} useless: give one of the two",
            *("ignore_eos", "eos_token_id"),
        )
    if values["include_stop_str_in_output"] and not values["stop_strings"]:
        yield _useless("include_stop_str_in_output", "without stop_strings", "stop_strings")
    if values["exponential_decay_length_penalty"] and _has_no_eos(values):
        why = "without an end-of-sequence token"
        yield _useless("exponential_decay_length_penalty", why, "eos_token_id")


def _has_no_eos(values: Values) -> bool:
    return bool(values["ignore_eos"] or values["eos_token_id"] == ())


def _cannot_end(values: Values) -> bool:
    return _has_no_eos(values) and not values["stop_token_ids"]


def _sampling(values: Values) -> Iterator[Conflict]:
    if values["do_sample"] is False:
        for name in _active(values, SAMPLING_ONLY):
            yield _useless(name, "without sampling", "do_sample=True", values[name])
    if values["mirostat_tau"] is not None:
        for name in _active(values, {name: SAMPLING_ONLY[name] for name in TRUNCATIONS}):
            yield _contradiction(
                f"{name}={values[name]} and mirostat_tau both cut the choice of tokens: "
                "give one of the two",
                *(name, "mirostat_tau"),
            )
    if _has_beams(values):
        for name in _active(values, {"mirostat_tau": (), "xtc_probability": (0.0,)}):
            yield _contradiction(
                f"{name}={values[name]} works on single sequences, not on "
                f"num_beams={values['num_beams']}: set num_beams=1 or leave it out",
                name,
            )


def _beams(values: Values) -> Iterator[Conflict]:
    beams, groups = values["num_beams"], values["num_beam_groups"]
    if beams == 1:
        for name in _active(values, BEAMS_ONLY):
            yield _useless(name, "without beam search", "num_beams above 1", values[name])
    if groups == 1 and values["diversity_penalty"]:
        yield _useless("diversity_penalty", "with one group", "num_beam_groups above 1")
    if groups is not None and groups > 1:
        both = ("num_beam_groups", "diversity_penalty")
        if beams is not None and beams % groups:
            yield _contradiction(
                f"num_beam_groups={groups} must divide num_beams={beams} evenly", *both
            )
        if values["diversity_penalty"] == 0:
            yield _contradiction(
                f"num_beam_groups={groups} needs diversity_penalty above 0: else all groups "
                "find the same",
                *both,
            )
        if values["do_sample"]:
            yield _contradiction(
                f"num_beam_groups={groups} does not go with sampling: set do_sample=False", *both
            )


def _returned(values: Values) -> Iterator[Conflict]:
    wanted, beams = values["num_return_sequences"], values["num_beams"]
    if wanted is None or wanted == 1 or beams is None:
        return
    if beams == 1 and values["do_sample"] is False:
        yield _contradiction(
            f"num_return_sequences={wanted} would be the same greedy text each time: "
            f"set do_sample=True or num_beams to at least {wanted}",
            "num_return_sequences",
        )
    if 1 < beams < wanted:
        yield _contradiction(
            f"num_return_sequences={wanted} must be at most num_beams={beams}: raise num_beams",
            "num_return_sequences",
        )


def _companions(values: Values) -> Iterator[Conflict]:
    for switch, options in SWITCHES.items():
        for name in options:
            if values[name] is not None and not values[switch]:
                yield _useless(name, f"without {switch}", f"{switch} above 0")
    # A penalty left open may come from the model's file.
    if values["penalty_last_n"] and all(values[name] == off for name, off in PENALTIES.items()):
        yield _useless("penalty_last_n", "without a penalty", " or ".join(PENALTIES))
    if values["negative_prompt"] and values["guidance_scale"] in (None, 1.0):
        remedy = "guidance_scale other than 1"
        yield _useless("negative_prompt", "without guidance_scale", remedy)


def _forced(values: Values) -> Iterator[Conflict]:
    for name, ids in (
        ("forced_bos_token_id", {values["forced_bos_token_id"]} - {None}),
        ("forced_eos_token_id", set(values["forced_eos_token_id"] or ())),
    ):
        for ban, banned in _bans(values, is_begin=name == "forced_bos_token_id"):
            if ids & banned:
                both = sorted(ids & banned)
                yield _contradiction(
                    f"{name} forces token {both[0]}, which {ban} forbids: take it out of one",
                    *(name, ban),
                )


def _bans(values: Values, *, is_begin: bool) -> Iterator[tuple[str, set[int]]]:
    """The options that forbid single tokens, with those."""
    yield "suppress_tokens", set(values["suppress_tokens"] or ())
    if is_begin:
        yield "begin_suppress_tokens", set(values["begin_suppress_tokens"] or ())
    yield "bad_words_ids", {ids[0] for ids in values["bad_words_ids"] or () if len(ids) == 1}
    yield "logit_bias", {one for one, bias in values["logit_bias"] or () if bias == -math.inf}
    sequences = values["sequence_bias"] or ()
    yield "sequence_bias", {ids[0] for ids, bias in sequences if bias == -math.inf and not ids[1:]}


def _has_beams(values: Values) -> bool:
    return values["num_beams"] is not None and values["num_beams"] > 1


def _active(values: Values, neutral: Mapping[str, tuple[Any, ...]]) -> Iterator[str]:
    """The options of a table that are given, and change something."""
    for name, off in neutral.items():
        if values[name] is not None and values[name] not in off:
            yield name


_RULES = (_lengths, _endings, _sampling, _beams, _returned, _companions, _forced)
