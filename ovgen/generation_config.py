"""How one request is decoded. Field names are Hugging Face's; a config is frozen and valid."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovgen.errors import ConfigError, ModelFormatError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """Options of one generation; decoding is greedy.

    Attributes:
        max_new_tokens: most tokens to generate, at least 1. None: until an end-of-sequence token
            or the end of the model's context.
        eos_token_id: token ids that end a sequence. None: those of the model's
            generation_config.json; an empty tuple: none at all.
        ignore_eos: go on after an end-of-sequence token, up to ``max_new_tokens``.
        stop_strings: texts that end the output as soon as one appears in it.
        include_stop_str_in_output: keep the matched stop string at the end of the text.
        skip_special_tokens: leave special tokens out of the text.
        max_time: seconds after which the request ends with what it has.

    Raises:
        ConfigError: an option is out of range or would have no effect.
    """

    max_new_tokens: int | None = None
    eos_token_id: int | tuple[int, ...] | list[int] | None = None
    ignore_eos: bool = False
    stop_strings: str | tuple[str, ...] | list[str] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    max_time: float | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            _check_int("max_new_tokens", self.max_new_tokens, minimum=1)
        if self.max_time is not None and not (
            isinstance(self.max_time, (int, float))
            and not isinstance(self.max_time, bool)
            and 0 < self.max_time < math.inf
        ):
            raise ConfigError(
                f"max_time must be a number of seconds above 0, not {self.max_time!r}"
            )
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, not {getattr(self, name)!r}")
        # One form inside: a caller may also give a single value or a list.
        if self.eos_token_id is not None:
            object.__setattr__(self, "eos_token_id", _token_ids("eos_token_id", self.eos_token_id))
        object.__setattr__(self, "stop_strings", _strings("stop_strings", self.stop_strings))
        self._refuse_options_without_effect()

    def _refuse_options_without_effect(self) -> None:
        if self.include_stop_str_in_output and not self.stop_strings:
            raise ConfigError(
                "include_stop_str_in_output has no effect without stop_strings: "
                "give stop_strings or leave it out"
            )
        if self.ignore_eos and self.eos_token_id:
            raise ConfigError(
                f"ignore_eos makes eos_token_id={list(self.eos_ids)} useless: give one of the two"
            )

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a sequence, none where ``eos_token_id`` is not set."""
        ids = self.eos_token_id
        return ids if isinstance(ids, tuple) else ()

    def replace(self, **changes: Any) -> GenerationConfig:
        """A copy with some options changed; unknown names are refused."""
        refuse_unknown_options(changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All options as JSON-ready values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> GenerationConfig:
        """The defaults that a model folder's generation_config.json gives.

        Token ids missing there are looked up in config.json, as transformers does. Options that
        belong to sampling are left out: decoding is greedy.

        Raises:
            ModelFormatError: a file is not JSON, or an option in it is illegal.
        """
        for name in ("generation_config.json", "config.json"):
            path = Path(folder) / name
            ids = read_json(path).get("eos_token_id") if path.is_file() else None
            if ids is not None:
                try:
                    return cls(eos_token_id=ids)
                except ConfigError as exc:
                    raise ModelFormatError(f"{path}: {exc}") from exc
        return cls(eos_token_id=())


OPTION_NAMES = tuple(field.name for field in dataclasses.fields(GenerationConfig))


def refuse_unknown_options(options: Mapping[str, Any]) -> None:
    """Raise ConfigError naming the first unknown option and the nearest right name."""
    for name in options:
        if name not in OPTION_NAMES:
            near = difflib.get_close_matches(name, OPTION_NAMES, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(OPTION_NAMES)}"
            raise ConfigError(f"unknown generation option {name!r}; {hint}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder.

    Raises:
        ModelFormatError: the file cannot be read, is not JSON, or holds no object.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        raise ModelFormatError(f"{path} is not readable JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def _check_int(name: str, value: Any, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name} must be a whole number of at least {minimum}, not {value!r}")
    return value


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    ids = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return tuple(_check_int(name, token_id, minimum=0) for token_id in ids)


def _strings(name: str, value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, (tuple, list)) or not all(isinstance(s, str) for s in strings):
        raise ConfigError(f"{name} must be a string or a list of strings, not {value!r}")
    if "" in strings:
        raise ConfigError(f"{name} must not hold an empty string: it would match everywhere")
    return tuple(strings)
