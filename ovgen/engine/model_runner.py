"""The only seam to OpenVINO."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from ovgen.engine.batch import ScheduledBatch
from ovgen.engine.prefix_transfer import BlockStore


class ModelRunner(Protocol):
    """Computes batches, and holds the KV cache."""

    @property
    def max_running_requests(self) -> int:
        """Requests that may share a batch."""

    @property
    def has_padding(self) -> bool:
        """Whether rows of a request may begin later than others."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache; 0 where the graph keeps it itself."""

    @property
    def block_size(self) -> int:
        """Tokens in a block."""

    @property
    def block_store(self) -> BlockStore | None:
        """The content of the blocks; None where there are none."""

    def start(self, batch: ScheduledBatch) -> None:
        """Begin to compute a batch; one at a time."""

    def wait(self, timeout: float) -> npt.NDArray[np.float32] | None:
        """The logits [num_logits, vocab] of the batch begun, valid until the next `start`; None
        where they are not there after ``timeout`` seconds."""

    def reset(self) -> None:
        """Forget everything computed, a batch under way with it."""

    def close(self) -> None:
        """Free the model."""
