"""The arguments of `ovgen run` that say how to decode."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import pytest

from ovgen.cli.generation_options import add_generation_options, make_generation_config
from ovgen.errors import ConfigError
from ovgen.generation_config import GenerationConfig


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ovgen run", allow_abbrev=False)
    add_generation_options(parser.add_argument_group("generation"))
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(parser=parser)
    return parser.parse_args(arguments)


def config(*arguments: str) -> GenerationConfig:
    return make_generation_config(parse(*arguments, "--json"))


def option(text: str) -> GenerationConfig:
    return config("--option", text)


@pytest.fixture
def usage_error(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Arguments that must be refused as wrong usage; gives the line that says so."""

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            make_generation_config(parse(*arguments))
        assert caught.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        usage, line = err.split("ovgen run: error: ")
        assert usage.startswith("usage: ")
        assert len(line.splitlines()) == 1
        assert len(line) < 1000
        return line

    return refused


def test_nothing_said_leaves_all_to_the_model():
    assert config() == GenerationConfig()


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--max-new-tokens", "5"], {"max_new_tokens": 5}),
        (["--stop", "a", "--stop", "b"], {"stop_strings": ("a", "b")}),
        (["--ignore-eos"], {"ignore_eos": True}),
        (["--max-time", "1.5"], {"max_time": 1.5}),
        (["--repetition-penalty", "1.1"], {"repetition_penalty": 1.1}),
        (["--num-beams", "4"], {"num_beams": 4}),
        (["--logprobs", "0"], {"logprobs": 0}),
    ],
)
def test_flags(arguments: list[str], options: dict[str, Any]):
    assert config(*arguments) == GenerationConfig(**options)


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [
        ("--temperature", "temperature", 0.5),
        ("--top-p", "top_p", 0.9),
        ("--top-k", "top_k", 7),
        ("--min-p", "min_p", 0.1),
        ("--seed", "seed", 2**64 - 1),
    ],
)
def test_a_sampling_flag_samples(flag: str, name: str, value: float):
    wanted = GenerationConfig(do_sample=True, **{name: value})
    assert config(flag, str(value)) == wanted
    assert config(flag, str(value), "--option", "do_sample=true") == wanted
    left_open = config(flag, str(value), "--option", "do_sample=null")
    assert left_open == GenerationConfig(**{name: value})
    with pytest.raises(ConfigError, match=f"{name}=.* has no effect without sampling"):
        config(flag, str(value), "--option", "do_sample=false")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("typical_p=0.9", "typical_p", 0.9),
        ("no_repeat_ngram_size=3", "no_repeat_ngram_size", 3),
        ('early_stopping="never"', "early_stopping", "never"),
        ("early_stopping=true", "early_stopping", True),
        ("bad_words_ids=[[1, 2], [3]]", "bad_words_ids", ((1, 2), (3,))),
        ('logit_bias={"5": -Infinity}', "logit_bias", ((5, -math.inf),)),
        ('stop_strings=["a=b", "="]', "stop_strings", ("a=b", "=")),
        ("eos_token_id=[]", "eos_token_id", ()),
        ("temperature=0.5", "temperature", 0.5),
        ("max_time=null", "max_time", None),
    ],
)
def test_any_option_by_its_name(text: str, name: str, value: object):
    assert getattr(option(text), name) == value
    assert option(text) == GenerationConfig(**{name: value})


def test_several_options():
    got = config(
        "--option", "num_beam_groups=2", "--option", "diversity_penalty=0.5", "--num-beams", "4"
    )
    assert got == GenerationConfig(num_beams=4, num_beam_groups=2, diversity_penalty=0.5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "early_stopping=never",
            "'never' is not JSON; text goes in double quotes: early_stopping=",
        ),
        ("ignore_eos=True", "'True' is not JSON; write ignore_eos=true"),
        ("top_k=", "'' is not JSON"),
        ("suppress_tokens=" + "[" * 10**5, "is not JSON"),
        ("seed=" + "1" * 5000, "is not JSON"),
        ("top_k", "'top_k' is not of the form"),
        ("=5", "'=5' is not of the form"),
        ("max_tokens=5", "unknown generation option 'max_tokens'; did you mean max_new_tokens?"),
        ("top-p=0.9", "'top-p'; did you mean top_p?"),
        ("n=2", "'n'; did you mean num_return_sequences?"),
    ],
)
def test_options_that_cannot_be_read(usage_error: Callable[..., str], text: str, reason: str):
    assert reason in usage_error("--json", "--option", text)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            ["--temperature", "1", "--option", "temperature=1"],
            "--temperature and --option temperature say the same: keep one",
        ),
        (["--stop", "a", "--option", "stop_strings=null"], "--stop and --option stop_strings"),
        (["--ignore-eos", "--option", "ignore_eos=true"], "--ignore-eos and --option ignore_eos"),
        (["--option", "top_k=5", "--option", "top_k=5"], "--option top_k is given twice"),
    ],
)
def test_an_option_said_twice(usage_error: Callable[..., str], arguments: list[str], reason: str):
    assert reason in usage_error("--json", *arguments)


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["--logprobs", "2"], "--logprobs"),
        (["--logprobs", "0"], "--logprobs"),
        (["--option", "logprobs=0"], "--option logprobs"),
        (["--option", "prompt_logprobs=1"], "--option prompt_logprobs"),
        (["--seed", "1", "--option", "num_return_sequences=2"], "--option num_return_sequences"),
    ],
)
def test_what_text_cannot_show_needs_json(
    usage_error: Callable[..., str], arguments: list[str], given: str
):
    assert usage_error(*arguments).startswith(f"{given} has no effect without --json")
    config(*arguments)


def test_text_is_of_one_output():
    model = GenerationConfig(do_sample=True, num_return_sequences=3)
    for arguments in ([], ["--option", "num_return_sequences=null"]):
        resolved = make_generation_config(parse(*arguments)).resolve(model)
        assert resolved.num_return_sequences == 1
        assert config(*arguments).resolve(model).num_return_sequences == 3
    assert make_generation_config(parse("--option", "num_return_sequences=1"))


@pytest.mark.parametrize("arguments", [["--temperature", "hot"], ["--top-k", "1.5"]])
def test_flags_that_cannot_be_read(usage_error: Callable[..., str], arguments: list[str]):
    assert arguments[0] in usage_error(*arguments)


@pytest.mark.parametrize("value", ["0", "nan", "inf"])
def test_illegal_values_are_the_configs_own_to_refuse(value: str):
    with pytest.raises(ConfigError, match="temperature must be"):
        config("--temperature", value)
