"""Typed and checked access to a model's config, by transformers' names.

In a config a field that is null counts as absent, as it does for transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ovgen.errors import ModelFormatError, UnsupportedModelError

MAX_SIZE = 1 << 20  # no number of heads, layers or features may be larger
ACTIVATIONS = (
    "gelu",
    "gelu_fast",
    "gelu_new",
    "gelu_pytorch_tanh",
    "relu",
    "relu2",
    "silu",
    "swish",
)  # fmt: skip


class CheckpointConfig:
    """A config's fields, each asked for with the values that are allowed.

    Every getter raises ModelFormatError, with the file, the field, its value and what is allowed,
    for a field of another type or out of range, and for one that is missing and has no default.
    """

    def __init__(self, values: Mapping[str, Any], path: Path, within: str = "") -> None:
        self.values = values
        self.path = path
        self._within = within  # the name of the object that the fields are in, with a dot

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get_int(
        self, key: str, *, default: int | None = None, min: int = 1, max: int = MAX_SIZE
    ) -> int:
        """The integer at `key`, from `min` to `max`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self._wrong(key, value, f"an integer from {min} to {max}")
        if not min <= value <= max:
            self._wrong(key, value, f"an integer from {min} to {max}")
        return value

    def get_float(
        self, key: str, *, default: float | None = None, min: float = -1e30, max: float = 1e30
    ) -> float:
        """The finite number at `key`, from `min` to `max`."""
        value = self._get(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not min <= value <= max:
            self._wrong(key, value, f"a number from {min:g} to {max:g}")
        return float(value)

    def get_bool(self, key: str, *, default: bool | None = None) -> bool:
        """The boolean at `key`."""
        value = self._get(key, default)
        return value if isinstance(value, bool) else self._wrong(key, value, "true or false")

    def get_str(self, key: str, *, default: str | None = None) -> str:
        """The string at `key`."""
        value = self._get(key, default)
        return value if isinstance(value, str) else self._wrong(key, value, "a string")

    def get_ints(self, key: str, *, min: int = 0, max: int = MAX_SIZE) -> list[int]:
        """The list of integers from `min` to `max` at `key`, empty where it is absent."""
        values = self._get(key, [])
        wanted = f"a list of integers from {min} to {max}"
        if not isinstance(values, list):
            self._wrong(key, values, wanted)
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or not min <= value <= max:
                self._wrong(key, value, wanted)
        return values

    def get_floats(self, key: str, length: int) -> list[float]:
        """The list of `length` finite numbers at `key`."""
        value = self._get(key, None)
        if not isinstance(value, list) or len(value) != length:
            self._wrong(key, value, f"a list of {length} numbers")
        is_finite = all(
            isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
            for x in value
        )
        return [float(x) for x in value] if is_finite else self._wrong(key, value, "finite numbers")

    def get_strs(self, key: str, length: int, allowed: tuple[str, ...]) -> list[str]:
        """The list of `length` strings at `key`, each one of `allowed`."""
        value = self._get(key, None)
        if not isinstance(value, list) or len(value) != length:
            self._wrong(key, value, f"a list of {length} of {', '.join(allowed)}")
        for item in value:
            if item not in allowed:
                raise UnsupportedModelError(
                    f"{self.path}: {self._within}{key} has {item!r:.80}; supported: "
                    f"{', '.join(allowed)}"
                )
        return value

    def get_object(self, key: str) -> CheckpointConfig | None:
        """The fields of the object at `key`; None where it is absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self._wrong(key, value, "an object")
        return CheckpointConfig(value, self.path, f"{self._within}{key}.")

    def get_activation(self, key: str = "hidden_act", *, default: str | None = None) -> str:
        """The name of an activation that `ovgen.export.graph.activation` computes."""
        value = self.get_str(key, default=default)
        if value not in ACTIVATIONS:
            self.refuse(key, f"supported: {', '.join(ACTIVATIONS)}")
        return value

    def renamed(self, **names: str) -> CheckpointConfig:
        """The same fields under the usual names: each takes the field of its own name where that
        is there, ``renamed(hidden_size="n_embd")``."""
        known = {usual: self.values[own] for usual, own in names.items() if own in self}
        return CheckpointConfig({**self.values, **known}, self.path, self._within)

    def require(self, key: str, *supported: Any) -> None:
        """Raise UnsupportedModelError unless the field is absent or one of the values given."""
        value = self.values.get(key)
        if value is not None and not any(value == item for item in supported):
            shown = ", ".join(map(repr, supported)) or "only models without it"
            self.refuse(key, f"supported: {shown}")

    def refuse(self, key: str, advice: str) -> NoReturn:
        """Raise UnsupportedModelError that names the field and its value."""
        raise UnsupportedModelError(
            f"{self.path}: {self._within}{key} is {self.values.get(key)!r:.80}, which cannot be "
            f"exported; {advice}"
        )

    def fail(self, problem: str) -> NoReturn:
        """Raise ModelFormatError about fields that do not fit together."""
        raise ModelFormatError(f"{self.path}: {self._within}{problem}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise ModelFormatError(f"{self.path}: {self._within}{key} is missing in the config")
        return value

    def _wrong(self, key: str, value: Any, expected: str) -> NoReturn:
        raise ModelFormatError(
            f"{self.path}: {self._within}{key} is {value!r:.80}, expected {expected}"
        )

    def find_float(self, key: str, *, min: float = -1e30, max: float = 1e30) -> float | None:
        """As `get_float`, None where the field is absent."""
        return self.get_float(key, min=min, max=max) if key in self else None

    def get_window(self, *, default: int | None = None) -> int | None:
        """``sliding_window``, the tokens that a sliding attention sees, where that is not all."""
        if "sliding_window" not in self and ("sliding_window" in self.values or default is None):
            return None
        window = self.get_int("sliding_window", default=default, max=1 << 30)
        return window if window < self.max_position_embeddings else None

    def sliding_layers(self, default: Callable[[int], bool]) -> list[bool]:
        """Which layers' attention slides: as ``layer_types`` says, or the default by number."""
        count = self.num_hidden_layers
        if "layer_types" not in self:
            return [default(layer) for layer in range(count)]
        kinds = self.get_strs("layer_types", count, ("full_attention", "sliding_attention"))
        return [kind == "sliding_attention" for kind in kinds]

    # The sizes that every decoder has.

    @property
    def model_type(self) -> str:
        """The architecture, by transformers' name."""
        return self.get_str("model_type")

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return self.get_int("vocab_size", max=1 << 24)

    @property
    def hidden_size(self) -> int:
        """Features of a token."""
        return self.get_int("hidden_size")

    @property
    def num_hidden_layers(self) -> int:
        """Blocks."""
        return self.get_int("num_hidden_layers", max=4096)

    @property
    def num_attention_heads(self) -> int:
        """Query heads of a block."""
        return self.get_int("num_attention_heads")

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads of a block, a divisor of the query heads."""
        heads = self.num_attention_heads
        kv_heads = self.get_int("num_key_value_heads", default=heads)
        if heads % kv_heads:
            self.fail(
                f"num_attention_heads is {heads}, expected a multiple of num_key_value_heads, "
                f"{kv_heads}"
            )
        return kv_heads

    @property
    def head_dim(self) -> int:
        """Features of a head."""
        if "head_dim" in self:
            return self.get_int("head_dim")
        hidden, heads = self.hidden_size, self.num_attention_heads
        if hidden % heads:
            self.fail(f"hidden_size is {hidden}, expected a multiple of the {heads} heads")
        return hidden // heads

    @property
    def intermediate_size(self) -> int:
        """Features inside the feed-forward network."""
        return self.get_int("intermediate_size", max=1 << 24)

    @property
    def max_position_embeddings(self) -> int:
        """Tokens that the model was made for."""
        return self.get_int("max_position_embeddings", max=1 << 30)
