"""Options that do not go together, each pair with its own message; and those that must."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ovgen.errors import ConfigError
from ovgen.generation_config import GenerationConfig
from ovgen.generation_conflicts import SAMPLING_ONLY

INF = math.inf

GREEDY = {"do_sample": False}
GROUPS = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}

CONTRADICTORY: list[tuple[dict[str, Any], str]] = [
    # Lengths.
    ({"max_new_tokens": 5, "max_length": 9}, "max_new_tokens=5 and max_length=9 say the same"),
    ({"min_new_tokens": 5, "min_length": 9}, "min_new_tokens=5 and min_length=9 say the same"),
    ({"min_new_tokens": 6, "max_new_tokens": 5}, "min_new_tokens may be at most 5 here"),
    ({"min_length": 6, "max_length": 5}, "min_length may be at most 5 here"),
    ({"min_new_tokens": 5, "max_length": 5}, "min_new_tokens may be at most 4 here"),
    ({"min_new_tokens": 1, "ignore_eos": True}, "min_new_tokens .* no token can end"),
    ({"min_length": 1, "eos_token_id": ()}, "min_length .* no token can end"),
    # Endings.
    ({"ignore_eos": True, "eos_token_id": 2}, r"ignore_eos makes eos_token_id=\[2\] useless"),
    ({"include_stop_str_in_output": True}, "has no effect without stop_strings"),
    (
        {"exponential_decay_length_penalty": (5, 1.1), "ignore_eos": True},
        "exponential_decay_length_penalty .* without an end-of-sequence token",
    ),
    (
        {"exponential_decay_length_penalty": (5, 1.1), "eos_token_id": ()},
        "exponential_decay_length_penalty .* without an end-of-sequence token",
    ),
    # Sampling.
    *(
        (GREEDY | {name: value}, f"{name}={value} has no effect without sampling: give do_sample")
        for name, value in {
            "temperature": 0.5,
            "top_k": 10,
            "top_p": 0.9,
            "min_p": 0.1,
            "typical_p": 0.9,
            "epsilon_cutoff": 0.1,
            "eta_cutoff": 0.1,
            "top_n_sigma": 1.0,
            "xtc_probability": 0.5,
            "mirostat_tau": 5.0,
            "seed": 0,
        }.items()
    ),
    ({"xtc_threshold": 0.1}, "xtc_threshold has no effect without xtc_probability"),
    ({"xtc_threshold": 0.1, "xtc_probability": 0}, "xtc_threshold has no effect without xtc_prob"),
    ({"mirostat_eta": 0.1}, "mirostat_eta has no effect without mirostat_tau"),
    *(
        ({"mirostat_tau": 5, name: value}, f"{name}={value} and mirostat_tau both cut")
        for name, value in {
            "top_k": 10,
            "top_p": 0.9,
            "min_p": 0.1,
            "typical_p": 0.9,
            "epsilon_cutoff": 0.1,
            "eta_cutoff": 0.1,
            "top_n_sigma": 1.0,
            "xtc_probability": 0.5,
        }.items()
    ),
    ({"mirostat_tau": 5, "num_beams": 2}, "mirostat_tau=5.0 works on single sequences"),
    ({"xtc_probability": 0.5, "num_beams": 2}, "xtc_probability=0.5 works on single sequences"),
    # Beams.
    ({"num_beams": 1, "length_penalty": 2}, "length_penalty=2.0 has no effect without beam search"),
    ({"num_beams": 1, "early_stopping": True}, "early_stopping=True has no effect without beam"),
    ({"num_beams": 1, "early_stopping": "never"}, "early_stopping='never' has no effect"),
    ({"num_beams": 1, "num_beam_groups": 2}, "num_beam_groups=2 has no effect without beam search"),
    ({"num_beams": 1, "diversity_penalty": 0.5}, "diversity_penalty=0.5 has no effect without"),
    ({"num_beam_groups": 1, "diversity_penalty": 0.5}, "diversity_penalty .* with one group"),
    (GROUPS | {"num_beams": 3}, "num_beam_groups=2 must divide num_beams=3"),
    (GROUPS | {"diversity_penalty": 0}, "num_beam_groups=2 needs diversity_penalty above 0"),
    (GROUPS | {"do_sample": True}, "num_beam_groups=2 does not go with sampling"),
    (GREEDY | {"num_beams": 1, "num_return_sequences": 2}, "num_return_sequences=2 .* same greedy"),
    ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 must be at most num_be"),
    # Penalties and guidance.
    (
        {"repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
        | {"penalty_last_n": 64},
        "penalty_last_n has no effect without a penalty",
    ),
    ({"dry_base": 2}, "dry_base has no effect without dry_multiplier"),
    ({"dry_allowed_length": 3, "dry_multiplier": 0}, "dry_allowed_length has no effect without"),
    ({"dry_penalty_last_n": 3}, "dry_penalty_last_n has no effect without dry_multiplier"),
    ({"dry_sequence_breakers": "\n"}, "dry_sequence_breakers has no effect without dry_multiplier"),
    ({"negative_prompt": "a"}, "negative_prompt has no effect without guidance_scale"),
    ({"negative_prompt": [1], "guidance_scale": 1}, "negative_prompt has no effect without guid"),
    # What one option forces and another forbids.
    ({"forced_bos_token_id": 5, "suppress_tokens": [5]}, "forced_bos.* which suppress_tokens"),
    ({"forced_bos_token_id": 5, "begin_suppress_tokens": 5}, "5, which begin_suppress_tokens"),
    ({"forced_eos_token_id": 5, "suppress_tokens": [5]}, "forced_eos.* which suppress_tokens"),
    ({"forced_eos_token_id": [4, 5], "bad_words_ids": [[5]]}, "token 5, which bad_words_ids"),
    ({"forced_eos_token_id": 5, "logit_bias": {5: -INF}}, "token 5, which logit_bias forbids"),
    ({"forced_bos_token_id": 5, "sequence_bias": {(5,): -INF}}, "which sequence_bias forbids"),
]


@pytest.mark.parametrize(("options", "fragment"), CONTRADICTORY)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], fragment: str):
    with pytest.raises(ConfigError, match=fragment) as caught:
        GenerationConfig(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        *(GREEDY | {name: value} for name, off in SAMPLING_ONLY.items() for value in off),
        {"num_beams": 1, "length_penalty": 1, "early_stopping": False, "num_beam_groups": 1},
        {"num_beams": 1, "diversity_penalty": 0, "num_return_sequences": 1},
        {"mirostat_tau": 5, "top_k": 50, "top_p": 1, "min_p": 0, "temperature": 0.7},
        {"ignore_eos": True, "eos_token_id": ()},
        {"ignore_eos": True, "min_new_tokens": 0, "min_length": 0},
        {"ignore_eos": True, "min_new_tokens": 5, "stop_token_ids": [7]},
        {"min_new_tokens": 0, "min_length": 5, "max_length": 5},
        {"min_new_tokens": 5, "max_new_tokens": 5},
        {"num_beams": 4, "do_sample": True, "top_k": 5, "min_p": 0.1, "seed": 2**64 - 1},
        {"num_beams": 4, "num_return_sequences": 4, "token_healing": True},
        {"num_beams": 1, "num_return_sequences": 4, "do_sample": True},
        GROUPS | GREEDY,
        {"guidance_scale": 0, "negative_prompt": [1]},
        {"dry_multiplier": 0.8, "dry_base": 1, "dry_sequence_breakers": ()},
        {"presence_penalty": -5, "frequency_penalty": 5, "penalty_last_n": 1},
        {"forced_eos_token_id": 5, "begin_suppress_tokens": [5], "bad_words_ids": [[5, 5]]},
        {"suppress_tokens": [], "bad_words_ids": [], "logit_bias": {}, "sequence_bias": {}},
        {"xtc_probability": 1, "xtc_threshold": 0.5, "num_beams": 1},
    ],
)
def test_values_that_change_nothing_or_go_together_are_fine(options: dict[str, Any]):
    GenerationConfig(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"seed": 1},
        {"length_penalty": 2.0},
        {"early_stopping": "never"},
        {"num_beam_groups": 2, "diversity_penalty": 0.5},
        {"num_beam_groups": 2, "num_beams": 4},
        {"num_return_sequences": 2},
        {"num_return_sequences": 2, "do_sample": False},
        {"penalty_last_n": 64},
        {"forced_eos_token_id": 2},
        {"min_new_tokens": 5},
        {"exponential_decay_length_penalty": (5, 1.1)},
    ],
)
def test_what_the_model_may_decide_is_refused_no_sooner(options: dict[str, Any]):
    config = GenerationConfig(**options)
    with pytest.raises(ConfigError, match="|".join(options)):
        config.resolve()
