"""Values that a GenerationConfig refuses, each with its own message, and the forms it takes."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest

from ovgen.errors import ConfigError
from ovgen.generation_checks import CHECKS
from ovgen.generation_config import OPTION_NAMES, GenerationConfig

INF, NAN = math.inf, math.nan

OUT_OF_RANGE: list[tuple[str, Any, str]] = [
    ("max_new_tokens", 0, "a whole number of at least 1, not 0"),
    ("max_new_tokens", -1, "at least 1, not -1"),
    ("max_new_tokens", 1.5, "not 1.5"),
    ("max_new_tokens", True, "not True"),
    ("max_new_tokens", "5", "not '5'"),
    ("max_length", 0, "at least 1, not 0"),
    ("min_new_tokens", -1, "at least 0, not -1"),
    ("min_length", -1, "at least 0, not -1"),
    ("max_time", 0, "a number of seconds above 0, not 0"),
    ("max_time", NAN, "not nan"),
    ("max_time", INF, "not inf"),
    ("max_time", True, "not True"),
    ("max_time", "5", "not '5'"),
    ("max_time", 10**400, "not 1000"),
    ("do_sample", 1, "True or False, not 1"),
    ("temperature", 0, "above 0, not 0; use do_sample=False for greedy"),
    ("temperature", -0.5, "not -0.5; use do_sample=False"),
    ("temperature", INF, "a finite number above 0, not inf"),
    ("temperature", True, "not True"),
    ("top_k", -1, "at least 0, not -1"),
    ("top_k", 5.0, "not 5.0"),
    ("top_p", 0, "above 0 and at most 1, not 0"),
    ("top_p", 1.5, "at most 1, not 1.5"),
    ("min_p", -0.1, "from 0 to 1, not -0.1"),
    ("min_p", 1.1, "from 0 to 1, not 1.1"),
    ("typical_p", 0, "above 0 and at most 1, not 0"),
    ("epsilon_cutoff", 1, "at least 0 and below 1, not 1"),
    ("eta_cutoff", -1, "at least 0 and below 1, not -1"),
    ("top_n_sigma", 0, "above 0, not 0"),
    ("xtc_probability", 2, "from 0 to 1, not 2"),
    ("xtc_threshold", 0.6, "above 0 and at most 0.5, not 0.6"),
    ("xtc_threshold", 0, "above 0 and at most 0.5, not 0"),
    ("mirostat_tau", 0, "above 0, not 0"),
    ("mirostat_eta", 1.5, "at most 1, not 1.5"),
    ("seed", -1, "from 0 to 18446744073709551615, not -1"),
    ("seed", 2**64, "not 18446744073709551616"),
    ("repetition_penalty", 0, "above 0, not 0"),
    ("presence_penalty", INF, "a finite number, not inf"),
    ("frequency_penalty", NAN, "a finite number, not nan"),
    ("penalty_last_n", 0, "at least 1, not 0"),
    ("no_repeat_ngram_size", -1, "at least 0, not -1"),
    ("dry_multiplier", -1, "at least 0, not -1"),
    ("dry_base", 0.5, "at least 1, not 0.5"),
    ("dry_allowed_length", 0, "at least 1, not 0"),
    ("dry_penalty_last_n", 0, "at least 1, not 0"),
    ("dry_sequence_breakers", [""], "an empty string"),
    ("bad_words_ids", [5], "non-empty lists of token ids, not 5"),
    ("bad_words_ids", [[]], r"non-empty lists of token ids, not \[\]"),
    ("bad_words_ids", [[-1]], "token ids, whole numbers of at least 0, not -1"),
    ("suppress_tokens", [1, "a"], "token ids, whole numbers of at least 0, not 'a'"),
    ("begin_suppress_tokens", {1}, r"not \{1\}"),
    ("forced_bos_token_id", [1], r"a token id, a whole number of at least 0, not \[1\]"),
    ("forced_eos_token_id", 1.0, "not 1.0"),
    ("exponential_decay_length_penalty", 5, r"\(start, factor\), not 5"),
    ("exponential_decay_length_penalty", (-1, 1.1), "start must be .* not -1"),
    ("exponential_decay_length_penalty", (1, 0), "factor must be .* not 0"),
    ("sequence_bias", 5, r"a dict or a list of \[token ids, bias\], not 5"),
    ("sequence_bias", [[[5], INF]], "finite number or -inf for each token, not inf"),
    ("sequence_bias", {(): 1.0}, r"non-empty lists of token ids, not \(\)"),
    ("sequence_bias", [[[5], 1.0], [[5], 2.0]], r"\(5,\) twice"),
    ("logit_bias", {5: INF}, "finite number or -inf for each token, not inf"),
    ("logit_bias", {5: NAN}, "not nan"),
    ("logit_bias", {"-5": 1.0}, "not '-5'"),
    ("logit_bias", {"a": 1.0}, "not 'a'"),
    ("logit_bias", {"5": 1.0, 5: 1.0}, "gives 5 twice"),
    ("logit_bias", [5, 1.0], r"a dict or a list of \[token id, bias\]"),
    ("num_beams", 0, "at least 1, not 0"),
    ("num_beam_groups", 0, "at least 1, not 0"),
    ("diversity_penalty", -1, "at least 0, not -1"),
    ("length_penalty", INF, "a finite number, not inf"),
    ("early_stopping", "always", "True, False or \"never\", not 'always'"),
    ("early_stopping", 1, "not 1"),
    ("num_return_sequences", 0, "at least 1, not 0"),
    ("eos_token_id", -1, "not -1"),
    ("eos_token_id", [2, True], "not True"),
    ("eos_token_id", "2", "not '2'"),
    ("eos_token_id", [[2]], r"not \[2\]"),
    ("stop_token_ids", None, "not None"),
    ("ignore_eos", 1, "True or False, not 1"),
    ("ignore_eos", None, "not None"),
    ("stop_strings", "", "an empty string"),
    ("stop_strings", ["a", ""], "an empty string"),
    ("stop_strings", [5], r"a list of strings, not \[5\]"),
    ("stop_strings", None, "not None"),
    ("include_stop_str_in_output", 0, "not 0"),
    ("skip_special_tokens", "no", "not 'no'"),
    ("guidance_scale", -1, "at least 0, not -1"),
    ("negative_prompt", "", "a non-empty string or list of ids, not ''"),
    ("negative_prompt", [], r"not \[\]"),
    ("token_healing", None, "not None"),
    ("echo", "yes", "not 'yes'"),
    ("logprobs", -1, "at least 0, not -1"),
    ("logprobs", True, "not True"),
    ("prompt_logprobs", -1, "at least 0, not -1"),
]


def test_every_option_has_a_check():
    assert set(CHECKS) == set(OPTION_NAMES)


@pytest.mark.parametrize(("name", "value", "fragment"), OUT_OF_RANGE)
def test_values_out_of_range_are_named(name: str, value: object, fragment: str):
    with pytest.raises(ConfigError, match=f"^{name}.*{fragment}") as caught:
        GenerationConfig(**{name: value})
    assert "\n" not in str(caught.value)


class Lines:
    def __repr__(self) -> str:
        return "a\nb"


@pytest.mark.parametrize(
    "value", [Lines(), -(10**5000), [-1] * 10**5], ids=["lines", "huge", "long"]
)
@pytest.mark.parametrize("name", OPTION_NAMES)
def test_a_message_is_one_short_line(name: str, value: object):
    with pytest.raises(ConfigError, match=name) as caught:
        GenerationConfig(**{name: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_whole_numbers_of_other_libraries_become_plain_ones():
    class Whole:
        def __index__(self) -> int:
            return 5

    config = GenerationConfig(top_k=Whole(), eos_token_id=[Whole()], logit_bias={Whole(): 1})
    assert (config.top_k, config.eos_token_id) == (5, (5,))
    assert config.logit_bias == ((5, 1.0),)
    assert type(config.top_k) is int


@pytest.mark.parametrize("value", [1, Fraction(1)])
def test_real_numbers_become_floats(value: Any):
    assert type(GenerationConfig(temperature=value).temperature) is float
