"""What is measured: figures, and the samples of each by engine."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Literal

from ovgen.bench.engines import OWN_NAME

Unit = Literal["s", "tokens/s", "bytes"]

TTFT, TPOT, THROUGHPUT, CHAT = "TTFT", "TPOT", "throughput", "TTFT in a chat"
START, MEMORY = "process start to first token", "peak memory"
GROUPS = (TTFT, TPOT, THROUGHPUT, CHAT, START, MEMORY)  # in the order of the table


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        group: what is measured, one of GROUPS.
        label: at what, as "512 tokens".
        unit: of the samples.
    """

    group: str
    label: str
    unit: Unit

    @property
    def is_better_when_lower(self) -> bool:
        """True for times and memory, False for throughput."""
        return self.unit != "tokens/s"


class Samples:
    """What was measured."""

    def __init__(self) -> None:
        self._values: dict[Figure, dict[str, list[float]]] = {}

    def add(self, figure: Figure, engine: str, value: float) -> None:
        """Add the sample of a round."""
        self._values.setdefault(figure, {}).setdefault(engine, []).append(value)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All that have samples: by group, then in the order in which they came up."""
        return tuple(sorted(self._values, key=lambda figure: GROUPS.index(figure.group)))

    def rounds(self, figure: Figure) -> dict[str, list[float]]:
        """The samples of a figure by engine."""
        return self._values[figure]

    def median(self, figure: Figure, engine: str) -> float | None:
        """The median over the rounds, None where an engine was not measured."""
        values = self._values[figure].get(engine)
        return statistics.median(values) if values else None

    def ratio(self, figure: Figure, peer: str) -> float | None:
        """How much better ovgen is than a peer: above 1 ovgen is better."""
        own, other = self.median(figure, OWN_NAME), self.median(figure, peer)
        if not own or not other:
            return None
        return other / own if figure.is_better_when_lower else own / other
