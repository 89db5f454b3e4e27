"""What a user may ask of the weights: formats with NNCF's names and meanings, and options."""

from __future__ import annotations

from dataclasses import dataclass

from ovgen.errors import ConfigError

FLOAT_MODES = ("fp32", "fp16", "bf16")
INT8_MODES = ("int8_sym", "int8_asym")
FOUR_BIT_MODES = ("int4_sym", "int4_asym", "nf4")
MODES = ("auto", "exact", *FLOAT_MODES, *INT8_MODES, *FOUR_BIT_MODES)

PER_CHANNEL = -1
_MIN_GROUP, _MAX_GROUP = 16, 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionConfig:
    """How weights are stored.

    Attributes:
        mode: ``auto`` (the fastest form that stays faithful), ``exact`` (the file's own values and
            grids), a type of floats, or a grid to round to. In 4 bits the embedding and the head
            stay in 8.
        group_size: neighbours along a row that share a scale, or -1 for a whole row; None takes 64
            in 8 bits and 128 in 4. A row that it does not divide takes the largest power of two
            below it that does.
        ratio: the share of the blocks' weights in 4 bits, 0 to 1; the others stay in 8, those first
            that would lose most. None for all.
        all_layers: in 4 bits the embedding and the head too, and all of it counts for the ratio.
        overrides: (pattern, mode) pairs for tensors by name, as ``*.down_proj.weight``; the first
            that fits decides.
        scale_search: in 4 bits, take the scales with the smallest squared error.

    Raises:
        ConfigError: a value that is not allowed, or an option without effect.
    """

    mode: str = "auto"
    group_size: int | None = None
    ratio: float | None = None
    all_layers: bool = False
    overrides: tuple[tuple[str, str], ...] = ()
    scale_search: bool = True

    @property
    def searches_scales(self) -> bool:
        """Whether any weight's scales are searched for."""
        modes = {self.mode, *(mode for _, mode in self.overrides)}
        return self.scale_search and bool(modes.intersection(FOUR_BIT_MODES))

    def __post_init__(self) -> None:
        _check_mode("weights", self.mode, MODES)
        for pattern, mode in self.overrides:
            _check_mode(f"the mode of {pattern!r}", mode, MODES[1:])
        modes = {self.mode, *(mode for _, mode in self.overrides)}
        four_bits = bool(modes.intersection(FOUR_BIT_MODES))
        if self.group_size is not None:
            _check_group_size(self.group_size)
            if not four_bits and not modes.intersection(INT8_MODES):
                raise _without_effect("group_size", (*INT8_MODES, *FOUR_BIT_MODES), self.mode)
        if not self.scale_search and not four_bits:
            raise _without_effect("scale_search", FOUR_BIT_MODES, self.mode)
        if self.mode not in FOUR_BIT_MODES:
            if self.ratio is not None:
                raise _without_effect("ratio", FOUR_BIT_MODES, self.mode)
            if self.all_layers:
                raise _without_effect("all_layers", FOUR_BIT_MODES, self.mode)
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise ConfigError(f"ratio must be between 0 and 1, not {self.ratio}")


def _check_mode(what: str, mode: str, allowed: tuple[str, ...]) -> None:
    if mode not in allowed:
        raise ConfigError(f"{what} must be one of {', '.join(allowed)}, not {mode!r}")


def _check_group_size(size: int) -> None:
    if size == PER_CHANNEL:
        return
    if not _MIN_GROUP <= size <= _MAX_GROUP or size % _MIN_GROUP:
        raise ConfigError(
            f"group_size must be -1 (a whole row) or a multiple of {_MIN_GROUP} up to "
            f"{_MAX_GROUP}, not {size}"
        )


def _without_effect(option: str, modes: tuple[str, ...], mode: str) -> ConfigError:
    return ConfigError(
        f"{option} has no effect on {mode} weights; leave it out, or take one of {', '.join(modes)}"
    )
