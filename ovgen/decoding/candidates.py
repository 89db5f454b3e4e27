"""What is left of a row of logits to choose from, and the memory that choosing takes."""

from __future__ import annotations

import math
import threading
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ovgen.decoding.arrays import Indices, Logits
from ovgen.errors import RequestError

Mask: TypeAlias = npt.NDArray[np.bool_]

_NEUTRAL = np.float32(1)
SAFE = np.float32(50)  # far from where exp, or a sum of many, overflows or underflows


class Workspace(threading.local):
    """Rows of the vocabulary's size that are written over and over, each thread's own.

    A new array of this size costs more than what is computed in it, for the system has to clear
    its pages first.
    """

    def __init__(self) -> None:
        self._rows: dict[str, Logits] = {}
        self._mask = np.empty(0, np.bool_)

    def row(self, name: str, size: int) -> Logits:
        """[size] float32 with anything in it, the same for the same name."""
        row = self._rows.get(name)
        if row is None or len(row) != size:
            row = self._rows[name] = np.empty(size, np.float32)
        return row

    def mask(self, size: int) -> Mask:
        """[size] bool with anything in it, always the same."""
        if len(self._mask) < size:
            self._mask = np.empty(size, np.bool_)
        return self._mask[:size]


class Candidates:
    """The tokens that are left of a row; valid until the workspace is used again.

    Attributes:
        logits: [n] float32, all finite, before the temperature, which does not change their order.
        ids: [n] their token ids, ascending; None: all of the vocabulary.
        weights: [n] float32, ``exp(logits / temperature)`` up to a common factor.
        total: the sum of the weights.
    """

    __slots__ = ("_total", "_weights", "ids", "logits", "temperature", "workspace")

    def __init__(
        self, logits: Logits, workspace: Workspace, temperature: np.float32 = _NEUTRAL
    ) -> None:
        self.logits = logits
        self.workspace = workspace
        self.temperature = temperature
        self.ids: Indices | None = None
        self._weights: Logits | None = None
        self._total: float | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def narrow(self, kept: Indices) -> None:
        """Leave out all but these."""
        if len(kept) == len(self.logits):
            return
        self.ids = kept if self.ids is None else self.ids[kept]
        self.logits = self.logits[kept]
        if self._weights is not None:
            self._weights = self._weights[kept]
            self._total = None

    @property
    def weights(self) -> Logits:
        """See above; computed when first asked for."""
        if self._weights is None:
            is_whole = self.ids is None
            out = self.workspace.row("weights", len(self.logits)) if is_whole else None
            self._weights = weights_of(self.logits, out, self.temperature)
        return self._weights

    @property
    def total(self) -> float:
        """See above; computed when first asked for."""
        if self._total is None:
            self._total = float(np.add.reduce(self.weights))
        return self._total

    def warped(self) -> Logits:
        """The logits divided by the temperature, a copy."""
        return np.divide(self.logits, self.temperature, dtype=np.float32)


def weights_of(
    logits: Logits, out: Logits | None = None, temperature: np.float32 = _NEUTRAL
) -> Logits:
    """``exp(logits / temperature)`` up to a common factor: probabilities but for their sum.

    Raises:
        RequestError: the highest of the logits is no finite number.
    """
    highest = np.maximum.reduce(logits)
    if not abs(highest) <= SAFE * temperature:
        if not math.isfinite(highest):
            raise RequestError(
                f"the logits hold {highest}: the model or a logits processor overflows"
            )
        logits = out = np.subtract(logits, highest, out=out)
    if temperature != 1:
        logits = out = np.multiply(logits, 1 / temperature, out=out)
    return np.exp(logits, out=out)
