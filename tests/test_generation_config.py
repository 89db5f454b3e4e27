"""GenerationConfig: its form, its names, and what the model decides."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from random import Random
from typing import Any

import pytest

from ovgen.errors import ConfigError
from ovgen.generation_config import OPTION_NAMES, GenerationConfig, refuse_unknown_options

# One config that holds a value of every form.
FULL = GenerationConfig(
    max_new_tokens=5,
    do_sample=True,
    temperature=1,
    exponential_decay_length_penalty=[3, 1],
    bad_words_ids=[[3, 4], [1]],
    suppress_tokens=7,
    sequence_bias={(5, 6): -math.inf, (2,): 1},
    logit_bias={"11": -math.inf, 9: 2},
    eos_token_id=[1, 2],
    stop_strings="a",
    negative_prompt=[1, 2],
    guidance_scale=2,
    dry_multiplier=0.5,
    dry_sequence_breakers=["\n"],
    num_beams=2,
    early_stopping="never",
    max_time=2.5,
)


def test_one_form_inside():
    config = GenerationConfig(eos_token_id=2, stop_strings="END")
    assert (config.eos_token_id, config.stop_strings) == ((2,), ("END",))
    config = GenerationConfig(eos_token_id=[2, 3], stop_strings=["a", "b"])
    assert (config.eos_token_id, config.stop_strings) == ((2, 3), ("a", "b"))
    assert config == GenerationConfig(eos_token_id=(2, 3), stop_strings=("a", "b"))
    assert hash(config)


def test_one_form_inside_of_nested_options():
    assert FULL.bad_words_ids == ((1,), (3, 4))
    assert FULL.logit_bias == ((9, 2.0), (11, -math.inf))
    assert FULL.sequence_bias == (((2,), 1.0), ((5, 6), -math.inf))
    assert FULL.exponential_decay_length_penalty == (3, 1.0)
    again = FULL.replace(
        sequence_bias=[[[2], 1], [[5, 6], -math.inf]], logit_bias=[[11, -math.inf], (9, 2)]
    )
    assert again == FULL
    assert hash(FULL)
    assert copy.deepcopy(FULL) == pickle.loads(pickle.dumps(FULL)) == FULL


def test_no_eos_given_and_none_wanted_are_different():
    assert GenerationConfig().eos_token_id is None
    assert GenerationConfig(eos_token_id=()).eos_token_id == ()
    assert GenerationConfig().eos_ids == GenerationConfig(eos_token_id=[]).eos_ids == ()


def test_replace():
    config = GenerationConfig(max_new_tokens=5, stop_strings="a")
    changed = config.replace(stop_strings=["b"])
    assert (changed.max_new_tokens, changed.stop_strings) == (5, ("b",))
    assert config.stop_strings == ("a",)
    with pytest.raises(ConfigError, match="include_stop_str_in_output has no effect"):
        config.replace(stop_strings=[], include_stop_str_in_output=True)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("max_tokens", "max_new_tokens"),
        ("stop", "stop_strings"),
        ("n", "num_return_sequences"),
        ("eos_token_ids", "eos_token_id"),
        ("dry_multplier", "dry_multiplier"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, near: str):
    with pytest.raises(ConfigError, match=f"'{name}'; did you mean {near}\\?"):
        GenerationConfig().replace(**{name: 1})


def test_an_unknown_name_with_none_near_gets_all():
    with pytest.raises(ConfigError, match=r"known: max_new_tokens, .*cache_salt$"):
        refuse_unknown_options({"zzz": 1})


@pytest.mark.parametrize("config", [GenerationConfig(), FULL, FULL.resolve()])
def test_to_dict_is_json_and_comes_back(config: GenerationConfig):
    assert GenerationConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert set(config.to_dict()) == {field.name for field in dataclasses.fields(config)}


def test_to_dict_has_the_forms_of_json():
    values = FULL.to_dict()
    assert values["logit_bias"] == {"9": 2.0, "11": -math.inf}
    assert values["sequence_bias"] == [[[2], 1.0], [[5, 6], -math.inf]]
    assert values["bad_words_ids"] == [[1], [3, 4]]
    assert values["stop_strings"] == ["a"]


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GenerationConfig().max_new_tokens = 5  # type: ignore[misc]


def test_every_option_is_described():
    described = {line.strip().split(":")[0] for line in GenerationConfig.__doc__.splitlines()}
    assert set(OPTION_NAMES) <= described


# resolve: (request, model, what comes out of it)
RESOLVED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "nothing said": (
        {},
        {},
        {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0}
        | {"presence_penalty": 0.0, "guidance_scale": 1.0, "dry_multiplier": 0.0, "dry_base": None}
        | {"early_stopping": False, "eos_token_id": (), "max_new_tokens": None, "max_length": None}
        | {"temperature": None, "top_k": None, "xtc_probability": None},
    ),
    "sampling": (
        {"do_sample": True},
        {},
        {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "epsilon_cutoff": 0.0}
        | {"eta_cutoff": 0.0, "xtc_probability": 0.0, "xtc_threshold": None, "min_p": None}
        | {"mirostat_eta": None},
    ),
    "switches": (
        {"do_sample": True, "xtc_probability": 0.5, "dry_multiplier": 0.8, "dry_base": 2},
        {},
        {"xtc_threshold": 0.1, "dry_base": 2.0, "dry_allowed_length": 2}
        | {"dry_sequence_breakers": ("\n", ":", '"', "*")},
    ),
    "no breakers wanted": (
        {"dry_multiplier": 0.8, "dry_sequence_breakers": ()},
        {},
        {"dry_sequence_breakers": ()},
    ),
    "mirostat": (
        {"do_sample": True, "mirostat_tau": 5},
        {"top_k": 20, "top_p": 0.9, "temperature": 0.6},
        {"mirostat_eta": 0.1, "top_k": 0, "top_p": 1.0, "temperature": 0.6},
    ),
    "mirostat and the usual top_k": (
        {"do_sample": True, "mirostat_tau": 5, "top_k": 50},
        {},
        {"top_k": 0},
    ),
    "a cut against the model's mirostat": (
        {"top_p": 0.9},
        {"do_sample": True, "mirostat_tau": 5.0, "mirostat_eta": 0.2},
        {"mirostat_tau": None, "mirostat_eta": None, "top_p": 0.9, "top_k": 50},
    ),
    "the model samples": (
        {"top_p": 0.5},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.5, "top_k": 20},
    ),
    "the model samples, the request does not": (
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.6, "top_k": 50, "repetition_penalty": 1.1, "seed": 5},
        {"temperature": None, "top_k": None, "repetition_penalty": 1.1, "seed": None},
    ),
    "the model searches with beams": (
        {"length_penalty": 2},
        {"num_beams": 4, "early_stopping": True},
        {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
    ),
    "the model searches with beams, the request does not": (
        {"num_beams": 1},
        {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0, "num_return_sequences": 2},
        {"early_stopping": False, "length_penalty": 1.0, "num_return_sequences": 1},
    ),
    "groups that do not fit": (
        {"num_beams": 3},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"num_beam_groups": 1, "diversity_penalty": 0.0},
    ),
    "groups give way to sampling": (
        {"do_sample": True},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"num_beams": 4, "num_beam_groups": 1, "diversity_penalty": 0.0, "temperature": 1.0},
    ),
    "lengths of the model": (
        {},
        {"max_length": 100, "min_new_tokens": 3, "eos_token_id": 2},
        {"max_length": 100, "min_new_tokens": 3, "max_new_tokens": None},
    ),
    "lengths of the request": (
        {"max_new_tokens": 2},
        {"max_length": 100, "min_new_tokens": 3, "eos_token_id": 2},
        {"max_new_tokens": 2, "max_length": None, "min_new_tokens": None},
    ),
    "no minimum wanted": (
        {"min_new_tokens": 0},
        {"min_length": 10, "eos_token_id": 2},
        {"min_new_tokens": 0, "min_length": None},
    ),
    "end-of-sequence tokens of the model": ({}, {"eos_token_id": (2, 3)}, {"eos_token_id": (2, 3)}),
    "end-of-sequence tokens ignored": (
        {"ignore_eos": True},
        {"eos_token_id": 2, "min_length": 5, "exponential_decay_length_penalty": (5, 1.1)},
        {"eos_token_id": (), "min_length": None, "exponential_decay_length_penalty": None},
    ),
    "no end-of-sequence tokens": ({"eos_token_id": ()}, {"eos_token_id": 2}, {"eos_token_id": ()}),
    "stop strings of the model": (
        {"max_new_tokens": 5},
        {"stop_strings": "END"},
        {"stop_strings": ("END",)},
    ),
    "stop strings of the request": (
        {"stop_strings": "X"},
        {"stop_strings": "END"},
        {"stop_strings": ("X",)},
    ),
    "the model forces what the request forbids": (
        {"suppress_tokens": [5]},
        {"forced_eos_token_id": 5, "max_length": 9},
        {"forced_eos_token_id": None, "suppress_tokens": (5,)},
    ),
    "the model forces an end that nothing brings near": (
        {},
        {"forced_eos_token_id": 5},
        {"forced_eos_token_id": None},
    ),
    "the model's penalty": (
        {"penalty_last_n": 64},
        {"repetition_penalty": 1.1},
        {"penalty_last_n": 64, "repetition_penalty": 1.1},
    ),
    "the model's penalty off": (
        {"repetition_penalty": 1},
        {"repetition_penalty": 1.1, "penalty_last_n": 64},
        {"penalty_last_n": None, "repetition_penalty": 1.0},
    ),
}


@pytest.mark.parametrize(("request_", "model", "expected"), RESOLVED.values(), ids=RESOLVED)
def test_resolve(request_: dict[str, Any], model: dict[str, Any], expected: dict[str, Any]):
    defaults = GenerationConfig(**model)
    resolved = GenerationConfig(**request_).resolve(defaults)
    assert {name: getattr(resolved, name) for name in expected} == expected
    assert resolved.resolve(defaults) == resolved
    assert resolved.resolve() == resolved


SAMPLES: dict[str, list[Any]] = {
    "do_sample": [True, False],
    "num_beams": [1, 2, 4],
    "num_beam_groups": [1, 2],
    "diversity_penalty": [0.0, 0.5],
    "length_penalty": [1.0, 2.0],
    "num_return_sequences": [1, 2, 3],
    "temperature": [1.0, 0.5],
    "top_k": [0, 50, 5],
    "top_p": [1.0, 0.5],
    "mirostat_tau": [5.0],
    "mirostat_eta": [0.2],
    "xtc_probability": [0.0, 0.5],
    "xtc_threshold": [0.2],
    "max_new_tokens": [3, 9],
    "max_length": [3, 9],
    "min_new_tokens": [0, 5],
    "min_length": [0, 5],
    "ignore_eos": [True],
    "eos_token_id": [(), (2,)],
    "forced_eos_token_id": [(2,)],
    "suppress_tokens": [(), (2,)],
    "repetition_penalty": [1.0, 1.1],
    "penalty_last_n": [64],
    "dry_multiplier": [0.0, 0.8],
    "dry_base": [2.0],
    "guidance_scale": [1.0, 2.0],
    "negative_prompt": ["a"],
}


def random_config(random: Random) -> GenerationConfig:
    while True:
        names = random.sample(sorted(SAMPLES), random.randint(0, 6))
        try:
            return GenerationConfig(**{name: random.choice(SAMPLES[name]) for name in names})
        except ConfigError:
            pass


def test_resolve_of_random_options():
    random = Random(0)
    num_resolved = 0
    for _ in range(1500):
        config, model = random_config(random), random_config(random)
        GenerationConfig().resolve(model)  # a model's options alone never fail
        try:
            resolved = config.resolve(model)
        except ConfigError:
            continue
        num_resolved += 1
        assert resolved.resolve(model) == resolved.resolve() == resolved
        for name in set(SAMPLES) - {"top_k"}:  # which is 0 beside Mirostat
            given = getattr(config, name)
            assert given in (None, False, getattr(resolved, name)), name
    assert num_resolved > 500


@pytest.mark.parametrize(
    ("request_", "model", "message"),
    [
        ({"temperature": 0.5}, {"do_sample": False}, "temperature=0.5 has no effect"),
        ({"length_penalty": 2.0}, {"num_beams": 1}, "length_penalty=2.0 has no effect"),
        ({"num_return_sequences": 3}, {"num_beams": 2}, "must be at most num_beams=2"),
        ({"mirostat_tau": 5.0}, {"do_sample": True, "num_beams": 2}, "mirostat_tau=5.0 works on"),
        (
            {"num_beam_groups": 2, "diversity_penalty": 0.5, "num_beams": 4},
            {"do_sample": True},
            "set do_sample=False",
        ),
        ({"min_new_tokens": 2}, {"eos_token_id": ()}, "min_new_tokens has no effect"),
        ({"forced_eos_token_id": 2}, {"temperature": 0.5}, "give max_new_tokens or max_length"),
    ],
)
def test_resolve_refuses_the_callers_own_wishes(request_, model, message):
    with pytest.raises(ConfigError, match=message):
        GenerationConfig(**request_).resolve(GenerationConfig(**model))
