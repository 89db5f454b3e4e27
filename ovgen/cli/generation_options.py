"""How ``ovgen run`` decodes: the arguments for it, and the GenerationConfig that they make."""

from __future__ import annotations

import argparse
from typing import Any

from ovgen.cli.arguments import key_json
from ovgen.errors import ConfigError
from ovgen.generation_config import GenerationConfig, refuse_unknown_options

# An option of GenerationConfig -> the flag for it, whose value the namespace has by that name.
_FLAGS = {
    "max_new_tokens": "--max-new-tokens",
    "stop_strings": "--stop",
    "ignore_eos": "--ignore-eos",
    "max_time": "--max-time",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "min_p": "--min-p",
    "seed": "--seed",
    "repetition_penalty": "--repetition-penalty",
    "num_beams": "--num-beams",
    "logprobs": "--logprobs",
}
_SAMPLING_FLAGS = {"temperature", "top_p", "top_k", "min_p", "seed"}


def add_generation_options(group: argparse._ArgumentGroup) -> None:
    """Add the arguments; those that are absent are None."""

    def add(name: str, *, help: str, **keywords: Any) -> None:
        group.add_argument(_FLAGS[name], dest=name, default=None, help=help, **keywords)

    add("max_new_tokens", metavar="N", type=int, help="default: to the end of the context")
    add("stop_strings", metavar="TEXT", action="append", help="end before it; repeatable")
    add("ignore_eos", action="store_true", help="go on after an end-of-sequence token")
    add("max_time", metavar="SECONDS", type=float, help="default: no limit")
    add("temperature", metavar="T", type=float, help="sample; higher is more varied")
    add("top_p", metavar="P", type=float, help="sample from the likeliest that make up P")
    add("top_k", metavar="K", type=int, help="sample from the K likeliest; 0: from all")
    add("min_p", metavar="P", type=float, help="sample what has P times the likeliest's share")
    add("seed", metavar="N", type=int, help="sample, and the same each time")
    add("repetition_penalty", metavar="X", type=float, help="above 1: fewer repetitions")
    add("num_beams", metavar="N", type=int, help="beam search with N beams")
    add("logprobs", metavar="N", type=int, help="with --json: N alternatives to each token")
    group.add_argument(
        "--option",
        metavar="NAME=JSON",
        action="append",
        type=_option,
        default=[],
        help="any option of GenerationConfig, as typical_p=0.9; repeatable",
    )


def _option(text: str) -> tuple[str, Any]:
    name, value = key_json(text)
    try:
        refuse_unknown_options({name: value})
    except ConfigError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return name, value


def make_generation_config(arguments: argparse.Namespace) -> GenerationConfig:
    """The config that the arguments ask for; the rest is the model's own.

    A flag for sampling turns it on. Ends the program where options contradict or have no effect.

    Raises:
        ConfigError: as `GenerationConfig` does.
    """
    flags = {name: getattr(arguments, name) for name in _FLAGS}
    flags = {name: value for name, value in flags.items() if value is not None}
    options: dict[str, Any] = {}
    for name, value in arguments.option:
        if name in flags:
            arguments.parser.error(f"{_FLAGS[name]} and --option {name} say the same: keep one")
        if name in options:
            arguments.parser.error(f"--option {name} is given twice: keep one")
        options[name] = value
    if flags.keys() & _SAMPLING_FLAGS:
        options.setdefault("do_sample", True)
    config = GenerationConfig(**flags, **options)
    if not arguments.json:
        _refuse_what_text_cannot_show(config, flags, arguments.parser)
        # A model's own wish for several gives way: their texts would come mixed.
        config = config.replace(num_return_sequences=1)
    return config


def _refuse_what_text_cannot_show(
    config: GenerationConfig, flags: dict[str, Any], parser: argparse.ArgumentParser
) -> None:
    shows = {
        "num_return_sequences": config.num_return_sequences in (None, 1),
        "logprobs": config.logprobs is None,
        "prompt_logprobs": config.prompt_logprobs is None,
    }
    for name, can_show in shows.items():
        if not can_show:
            given = _FLAGS[name] if name in flags else f"--option {name}"
            parser.error(f"{given} has no effect without --json: add that, or leave it out")
