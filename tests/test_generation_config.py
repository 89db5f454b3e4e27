"""GenerationConfig: what is accepted, what is refused, where its defaults come from."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from ovgen.errors import ConfigError, ModelFormatError
from ovgen.generation_config import GenerationConfig, refuse_unknown_options


def test_one_form_inside():
    config = GenerationConfig(eos_token_id=2, stop_strings="END")
    assert (config.eos_token_id, config.stop_strings) == ((2,), ("END",))
    config = GenerationConfig(eos_token_id=[2, 3], stop_strings=["a", "b"])
    assert (config.eos_token_id, config.stop_strings) == ((2, 3), ("a", "b"))
    assert config == GenerationConfig(eos_token_id=(2, 3), stop_strings=("a", "b"))
    assert hash(config)


def test_no_eos_given_and_none_wanted_are_different():
    assert GenerationConfig().eos_token_id is None
    assert GenerationConfig(eos_token_id=()).eos_token_id == ()
    assert GenerationConfig().eos_ids == GenerationConfig(eos_token_id=[]).eos_ids == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -1),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("max_new_tokens", "5"),
        ("eos_token_id", -1),
        ("eos_token_id", [2, -1]),
        ("eos_token_id", "2"),
        ("eos_token_id", True),
        ("eos_token_id", [[2]]),
        ("ignore_eos", 1),
        ("ignore_eos", None),
        ("skip_special_tokens", "no"),
        ("include_stop_str_in_output", 0),
        ("stop_strings", ""),
        ("stop_strings", ["a", ""]),
        ("stop_strings", 5),
        ("stop_strings", [5]),
        ("stop_strings", None),
        ("max_time", 0),
        ("max_time", -1.0),
        ("max_time", math.nan),
        ("max_time", math.inf),
        ("max_time", True),
        ("max_time", "5"),
    ],
)
def test_values_out_of_range_are_named(name: str, value: object):
    with pytest.raises(ConfigError, match=name) as caught:
        GenerationConfig(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"include_stop_str_in_output": True}, {"ignore_eos": True, "eos_token_id": 2}],
)
def test_options_without_effect_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        GenerationConfig(**options)


def test_replace():
    config = GenerationConfig(max_new_tokens=5, stop_strings="a")
    changed = config.replace(stop_strings=["b"])
    assert (changed.max_new_tokens, changed.stop_strings) == (5, ("b",))
    assert config.stop_strings == ("a",)
    with pytest.raises(ConfigError, match="include_stop_str_in_output has no effect"):
        config.replace(stop_strings=[], include_stop_str_in_output=True)


@pytest.mark.parametrize(
    ("name", "near"),
    [("max_tokens", "max_new_tokens"), ("stop", "stop_strings"), ("eos_token_ids", "eos_token_id")],
)
def test_an_unknown_name_gets_the_nearest(name: str, near: str):
    with pytest.raises(ConfigError, match=f"'{name}'; did you mean {near}"):
        GenerationConfig().replace(**{name: 1})


def test_an_unknown_name_with_none_near_gets_all():
    with pytest.raises(ConfigError, match="known: max_new_tokens, eos_token_id"):
        refuse_unknown_options({"zzz": 1})


def test_to_dict_is_json_and_comes_back():
    config = GenerationConfig(max_new_tokens=5, eos_token_id=[1, 2], stop_strings="a", max_time=2.5)
    assert GenerationConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert set(config.to_dict()) == {field.name for field in dataclasses.fields(config)}


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GenerationConfig().max_new_tokens = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("generation", "config", "ids"),
    [
        ({"eos_token_id": 2}, {"eos_token_id": 9}, (2,)),
        ({"eos_token_id": [2, 3]}, None, (2, 3)),
        ({"eos_token_id": None}, {"eos_token_id": 9}, (9,)),
        ({"temperature": 0.6, "do_sample": True}, {"eos_token_id": 9}, (9,)),
        (None, {"eos_token_id": [7]}, (7,)),
        (None, {}, ()),
        (None, None, ()),
    ],
)
def test_the_models_own(tmp_path: Path, generation, config, ids):
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig(eos_token_id=ids)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", "\ufeff", '{"eos_token_id": "</s>"}', '{"eos_token_id": [1.5]}', "[" * 10**5],
)
def test_broken_files_are_named(tmp_path: Path, content: str):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ModelFormatError, match=r"generation_config\.json") as caught:
        GenerationConfig.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
