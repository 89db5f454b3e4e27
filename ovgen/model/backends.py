"""The runners that a model can have, and which of them serves it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ovgen.engine_config import EngineConfig
from ovgen.errors import UnsupportedModelError
from ovgen.model.compiled_cache import CompiledCache
from ovgen.model.loader import LoadedModel, load_model
from ovgen.model.stateful_runner import StatefulRunner

if TYPE_CHECKING:
    from ovgen.model.paged_model import PagedModel
    from ovgen.model.paged_runner import PagedRunner

_MAX_SEQS = 256
_STATEFUL_BUDGET = 8192  # its attention is slow where many new tokens meet a past
_PAGED_BUDGET = 512  # more is no faster, and takes more memory


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
        runner = StatefulRunner(loaded.compiled, loaded.weights, head=loaded.head)
        budget = self._config.token_budget or _STATEFUL_BUDGET
        return _backend(runner, min(budget, runner.max_batch_tokens or budget), loaded)

    def paged(self) -> Backend:
        """Many requests at once.

        Raises:
            UnsupportedModelError: the graph's attention cannot be paged, or is computed wrongly.
        DeviceError: the device failed.
        """
        # Not needed for the first request of a process.
        from ovgen.model.paged_model import load_paged_model
        from ovgen.model.paged_runner import PagedRunner
        from ovgen.model.trust import check_paging, recorded_verdict

        device = self._config.device
        verdict = recorded_verdict(self._folder, device) or check_paging(self._folder, device)
        if not verdict.is_right:
            raise UnsupportedModelError(
                f"{self._folder}: attention_backend='paged' does not work for it: {verdict.reason}"
            )
        loaded = load_paged_model(self._folder, self._config)
        runner = PagedRunner(loaded, max_running_requests=self._config.max_num_seqs or _MAX_SEQS)
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


def _backend(
    runner: StatefulRunner | PagedRunner, token_budget: int, loaded: LoadedModel | PagedModel
) -> Backend:
    return Backend(runner, token_budget, loaded.context_length, loaded.vocab_size)
