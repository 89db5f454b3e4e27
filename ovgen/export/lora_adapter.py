"""PEFT's LoRA adapters: adapter_config.json and adapter_model.safetensors, checked.

Low-rank updates of weights (Hu et al., 2021), with their variants rsLoRA and DoRA.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovgen.errors import ConfigError, ModelFormatError, ModelNotFoundError, UnsupportedModelError
from ovgen.export.mapped_file import read_json_object
from ovgen.export.safetensors import SafetensorsFile, StoredTensor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\."
    r"(?:lora_(?P<part>[AB])(?:\.\w+)?\.weight|(?P<norm>lora_magnitude_vector)(?:\.\w+)*)"
)
_READ = {
    "peft_type",
    "bias",
    "init_lora_weights",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
}
# Options about training and loading, which change nothing of what the weights mean.
_NO_MATTER = {
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "peft_version",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
    "eva_config",
    "ensure_weight_tying",
}
# The others make the update another one than B @ A, or the base another one than the model.
_REFUSED = {
    "modules_to_save": "whole modules that were trained",
    "trainable_token_indices": "trained rows of the embedding",
    "target_parameters": "updates of parameters that are no modules",
    "layer_replication": "layers that are repeated",
    "lora_bias": "biases inside of the update",
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
_MAX_PATTERN = 200


@dataclass(frozen=True, slots=True)
class LoraUpdate:
    """What is added to one weight: ``scale * B @ A``.

    Attributes:
        down: A, [rank, in].
        up: B, [out, rank].
        scale: of the product.
        magnitude: of DoRA, the length of each row of the sum [out]; None for plain LoRA.
        transposed: the weight is stored as [in, out].
        source: the adapter's folder, for messages.
    """

    down: StoredTensor
    up: StoredTensor
    scale: float
    magnitude: StoredTensor | None
    transposed: bool
    source: Path


class LoraAdapter:
    """An adapter's updates by module name; use as a context manager, or close it.

    Args:
        folder: as PEFT saves it.
        scale: multiplies all updates.

    Raises:
        ConfigError: a scale that is not finite.
        ModelNotFoundError: a file is missing.
        ModelFormatError: a file is damaged, or contradicts the other.
        UnsupportedModelError: an adapter of a kind that cannot be fused.
    """

    def __init__(self, folder: Path, scale: float = 1.0) -> None:
        if not math.isfinite(scale):
            raise ConfigError(f"the scale of {folder} must be a finite number, not {scale}")
        self.folder = folder
        self._config = read_json_object(folder / CONFIG_FILE)
        self._check_kind()
        if not (folder / WEIGHTS_FILE).exists() and (folder / "adapter_model.bin").exists():
            raise ModelNotFoundError(
                f"{folder}: the weights are a pickle, which may run code; save the adapter again "
                f"as {WEIGHTS_FILE} (PEFT's default)"
            )
        self._file = SafetensorsFile(folder / WEIGHTS_FILE)
        try:
            self.updates: Mapping[str, LoraUpdate] = self._read_updates(scale)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> LoraAdapter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _check_kind(self) -> None:
        config, kind = self._config, self._config.get("peft_type")
        if kind != "LORA":
            raise UnsupportedModelError(f"{self.folder}: peft_type is {kind!r}; LORA can be fused")
        if config.get("bias", "none") != "none":
            raise UnsupportedModelError(
                f"{self.folder}: trained biases (bias={config['bias']!r}) cannot be fused"
            )
        for key, value in config.items():
            if value and key not in _READ and key not in _NO_MATTER:
                what = _REFUSED.get(key, "the option")
                raise UnsupportedModelError(
                    f"{self.folder}: {what} ({key}={value!r:.60}) cannot be fused"
                )
        init = config.get("init_lora_weights", True)
        if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
            raise UnsupportedModelError(
                f"{self.folder}: init_lora_weights={init!r} changed the base weights; save it as a "
                "plain LoRA (path_initial_model_for_weight_conversion)"
            )

    def _read_updates(self, scale: float) -> dict[str, LoraUpdate]:
        modules: dict[str, dict[str, StoredTensor]] = {}
        for name, tensor in self._file.tensors.items():
            found = _KEY.fullmatch(name)
            if found is None:
                raise UnsupportedModelError(
                    f"{self.folder}: the tensor {name!r} is no part of a LoRA update of a linear "
                    "layer; only these can be fused"
                )
            part = found["part"] or "norm"
            modules.setdefault(found["module"], {})[part] = tensor
        if not modules:
            raise ModelFormatError(f"{self.folder}: {WEIGHTS_FILE} holds no updates")
        return {module: self._update(module, parts, scale) for module, parts in modules.items()}

    def _update(self, module: str, parts: Mapping[str, StoredTensor], scale: float) -> LoraUpdate:
        down, up, magnitude = parts.get("A"), parts.get("B"), parts.get("norm")
        if down is None or up is None:
            raise ModelFormatError(f"{self.folder}: {module} has lora_A or lora_B, not both")
        rank = self._number("r", "rank_pattern", module)
        if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
            raise ModelFormatError(
                f"{self.folder}: {module} has lora_A {down.shape} and lora_B {up.shape}; expected "
                "[rank, in] and [out, rank]"
            )
        if rank != down.shape[0] or rank < 1:
            raise ModelFormatError(
                f"{self.folder}: {module} has rank {down.shape[0]}, the config says {rank:g}"
            )
        if bool(self._config.get("use_dora")) != (magnitude is not None):
            raise ModelFormatError(
                f"{self.folder}: {module} and the config disagree on use_dora (the magnitude is "
                f"{'missing' if magnitude is None else 'there'})"
            )
        alpha = self._number("lora_alpha", "alpha_pattern", module)
        scale *= alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)
        transposed = bool(self._config.get("fan_in_fan_out"))
        return LoraUpdate(down, up, scale, magnitude, transposed, self.folder)

    def _number(self, key: str, patterns_key: str, module: str) -> float:
        """A setting that modules may have for themselves."""
        value: Any = self._config.get(key)
        patterns = self._config.get(patterns_key) or {}
        if not isinstance(patterns, dict):
            raise ModelFormatError(f"{self.folder}: {patterns_key!r} is not an object")
        for pattern, own in patterns.items():
            if _fits(pattern, module, self.folder):
                value = own
                break
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise ModelFormatError(
                f"{self.folder}: {key!r} is {value!r}, expected 0 < number < 1e6"
            )
        return float(value)


def _fits(pattern: str, module: str, folder: Path) -> bool:
    """As PEFT matches: the pattern is a name's end, or a regular expression of it.

    Patterns come from a file, so those that could take for ever are refused.
    """
    is_plain = len(pattern) <= _MAX_PATTERN and sum(map(pattern.count, "*+{")) <= 3
    if not is_plain or re.search(r"\)[*+{?]", pattern):
        raise UnsupportedModelError(f"{folder}: the pattern {pattern!r:.100} is too complicated")
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error as exc:
        raise ModelFormatError(f"{folder}: {pattern!r} is no regular expression ({exc})") from exc
