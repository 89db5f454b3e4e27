"""The generation options in a model folder's files, read as transformers does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovgen.errors import ConfigError, ModelFormatError
from ovgen.generation_checks import CHECKS, shown
from ovgen.generation_conflicts import RIVALS, conflicts, giving_way, without

# Options that transformers does not have: in a config.json, such a name is something else.
_NOT_IN_TRANSFORMERS = {
    *("top_n_sigma", "xtc_probability", "xtc_threshold", "mirostat_tau", "mirostat_eta", "seed"),
    *("presence_penalty", "frequency_penalty", "penalty_last_n", "dry_multiplier", "dry_base"),
    *("dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "logit_bias"),
    *("stop_token_ids", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens"),
    *("negative_prompt", "echo", "logprobs", "prompt_logprobs"),
    *("priority", "cache_salt"),
}
# Strategies in models' files that ovgen does not have and that change the output -> the values
# that leave them off. What else a file may hold is for other libraries (caches, outputs, padding),
# or changes the speed alone (assistants, prompt lookup), or mends broken logits.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "penalty_alpha": (0,),
    "dola_layers": (),
    "top_h": (1,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "renormalize_logits": (False,),
    "watermarking_config": (),
    "constraints": ([],),
    "force_words_ids": ([],),
    "forced_decoder_ids": ([],),
}


def read_options(folder: Path, blank: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a model folder gives, checked and without conflicts.

    Args:
        folder: holds generation_config.json, config.json, both or neither.
        blank: every option by name, as it is where no one has said anything.

    Raises:
        ModelFormatError: a file is not JSON, or an option in it is illegal or not supported.
    """
    path = folder / "generation_config.json"
    is_legacy = not path.is_file()
    stored = _legacy_options(folder) if is_legacy else read_json(path)
    if is_legacy:
        path = folder / "config.json"
    try:
        options = _checked_options(stored)
    except ConfigError as exc:
        raise ModelFormatError(f"{path}: {exc}") from exc
    if "eos_token_id" not in options and not options.get("ignore_eos"):
        ids = _legacy_options(folder).get("eos_token_id", ())
        try:
            options["eos_token_id"] = CHECKS["eos_token_id"]("eos_token_id", ids)
        except ConfigError as exc:
            raise ModelFormatError(f"{folder / 'config.json'}: {exc}") from exc
    options = giving_way(options, lambda given: {**blank, **given}, useless_only=True)
    for conflict in conflicts({**blank, **options}):
        raise ModelFormatError(f"{path}: {conflict.message}")
    return options


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


def _legacy_options(folder: Path) -> dict[str, Any]:
    """The options in config.json, where they stood before generation_config.json came up."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    parts = [config.get(name) for name in ("decoder", "generator", "text_config")]
    inner = next((part for part in parts if isinstance(part, dict) and part), {})
    sections: tuple[dict[str, Any], ...] = (inner, config)  # the outer one wins
    known = ({*CHECKS} | {*_UNSUPPORTED}) - _NOT_IN_TRANSFORMERS
    options = {
        name: value
        for section in sections
        for name, value in section.items()
        if name in known and value is not None
    }
    if config.get("force_bos_token_to_be_generated"):
        options["forced_bos_token_id"] = config.get("bos_token_id")
    return options


def _checked_options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's file says that means something here, each value legal in itself."""
    options = {name: value for name, value in stored.items() if value is not None}
    # The default, so left open: the file's temperature is for requests that sample, as it is there.
    if options.get("do_sample") is False:
        options = without(options, {"do_sample", "top_h"})
    # Some files say "greedy" in this way, without do_sample.
    if options.get("temperature") == 0 and not options.get("do_sample"):
        del options["temperature"]
    # Transformers wrote its old default of 20 into many files; it never was a model's wish.
    if options.get("max_length") == 20:
        del options["max_length"]
    # Of the two, these win there.
    for winner, rival in RIVALS:
        if options.get(winner):
            options.pop(rival, None)
    for name, off in _UNSUPPORTED.items():
        if name in options and options[name] not in off:
            raise ConfigError(
                f"{name}={shown(options[name])} is a way to decode that ovgen does not have; "
                "take it out of the file"
            )
    return {name: CHECKS[name](name, value) for name, value in options.items() if name in CHECKS}
