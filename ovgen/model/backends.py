"""The runners that a model can have, and which of them serves it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import openvino as ov

from ovgen.engine_config import EngineConfig
from ovgen.errors import ConfigError, UnsupportedModelError
from ovgen.model.compiled_cache import CompiledCache
from ovgen.model.kv_cache import block_size, bytes_per_block
from ovgen.model.loader import LoadedModel, load_model
from ovgen.model.memory import available_memory
from ovgen.model.stateful_runner import StatefulRunner

if TYPE_CHECKING:
    from ovgen.model.paged_runner import PagedRunner

# Where no size is asked for: the KV cache of so many full contexts, but at most this part of what
# memory there is.
_NUM_CONTEXTS = 8
_SHARE = 0.5
_LONG_CONTEXT = 32_768  # contexts beyond this are seldom full
_MAX_SEQS = 256
_STATEFUL_BUDGET = 8192  # its attention is slow where many new tokens meet a past
_PAGED_BUDGET = 256  # more is no faster, and takes more memory


class PagingWarning(UserWarning):
    """A model's attention cannot be paged: its requests are served one after the other."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A runner that is ready, and what goes with it.

    Attributes:
        runner: over a model of its own.
        token_budget: most tokens in one step.
        context_length: of the model.
        vocab_size: of the model.
    """

    runner: StatefulRunner | PagedRunner
    token_budget: int
    context_length: int
    vocab_size: int


class Backends:
    """Loads the runners of one model.

    A stateful graph comes from the cache of compiled models in a moment, but serves one request at
    a time; one with paged attention has to be compiled each time. With ``auto`` the first requests
    are served by the one and all others by the other.

    Args:
        folder: of the IR.
        config: of the engine.
        cache: of compiled models.
    """

    def __init__(self, folder: Path, config: EngineConfig, cache: CompiledCache | None) -> None:
        self._folder = folder
        self._config = config
        self._cache = cache

    def first(self) -> Backend:
        """What a load begins with."""
        return self.paged() if self._config.attention_backend == "paged" else self.stateful()

    @property
    def has_more(self) -> bool:
        """Whether `paged` may follow upon the first."""
        return self._config.attention_backend == "auto" and self._config.device == "CPU"

    def stateful(self) -> Backend:
        """One request at a time; the KV cache is in the graph."""
        loaded = load_model(self._folder, self._config, self._cache)
        runner = StatefulRunner(loaded.compiled, loaded.blobs, head=loaded.head)
        budget = self._config.token_budget or _STATEFUL_BUDGET
        return _backend(runner, min(budget, runner.max_batch_tokens or budget), loaded)

    def paged(self) -> Backend:
        """Many requests at once.

        Raises:
            UnsupportedModelError: the graph's attention cannot be paged, or is computed wrongly.
        DeviceError: the device failed.
        """
        # Not needed for the first request of a process.
        from ovgen.model.paged_runner import PagedRunner
        from ovgen.model.trust import check_paging, recorded_verdict

        device = self._config.device
        verdict = recorded_verdict(self._folder, device) or check_paging(self._folder, device)
        if not verdict.is_right:
            raise UnsupportedModelError(
                f"{self._folder}: attention_backend='paged' does not work for it: {verdict.reason}"
            )
        loaded = load_model(self._folder, self._config, None, is_paged=True)
        runner = PagedRunner(
            loaded.compiled,
            num_blocks=num_blocks(loaded.compiled, self._config, loaded.context_length),
            max_running_requests=self._config.max_num_seqs or _MAX_SEQS,
            head=loaded.head,
            weights=loaded.weights,
        )
        runner.warm_up()
        return _backend(runner, self._config.token_budget or _PAGED_BUDGET, loaded)

    def paged_if_right(self) -> Backend | None:
        """As `paged`; None, and a PagingWarning, where the model's attention cannot be paged."""
        try:
            return self.paged()
        except UnsupportedModelError as exc:
            warnings.warn(
                f"{exc}; requests are served one after the other. attention_backend='stateful' "
                "says that this is known",
                PagingWarning,
                stacklevel=2,
            )
            return None


def num_blocks(compiled: ov.CompiledModel, config: EngineConfig, context_length: int) -> int:
    """Blocks of the KV cache: as many as are asked for, or as seem sensible.

    Raises:
        ConfigError: fewer than one.
    """
    size, num_bytes = block_size(compiled), bytes_per_block(compiled)
    if config.kv_cache_tokens is not None:
        return -(-config.kv_cache_tokens // size)
    if config.kv_cache_size is not None:
        number = int(config.kv_cache_size * 1e9 / num_bytes)
        if number < 1:
            raise ConfigError(
                f"kv_cache_size is {config.kv_cache_size} GB; one block of {size} tokens takes "
                f"{num_bytes / 1e9:.3g} GB"
            )
        return number
    wanted = _NUM_CONTEXTS * min(context_length, _LONG_CONTEXT) // size
    return max(1, min(wanted, int(_SHARE * available_memory() / num_bytes)))


def _backend(
    runner: StatefulRunner | PagedRunner, token_budget: int, loaded: LoadedModel
) -> Backend:
    return Backend(runner, token_budget, loaded.context_length, loaded.vocab_size)
