"""From logits to the next tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def greedy(logits: npt.NDArray[np.float32]) -> list[int]:
    """The most likely token of each row; of equal ones the first.

    Args:
        logits: [num_sampled, vocab] float32.
    """
    token_ids: list[int] = logits.argmax(axis=-1).tolist()
    return token_ids
