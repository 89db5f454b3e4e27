"""The outcome, as a table for people and as JSON with every round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ovgen
from ovgen.bench.engines import OWN_NAME, Engine
from ovgen.bench.figures import Figure, Samples, Unit
from ovgen.bench.workloads import SEQUENTIAL_REQUESTS

_NONE = "-"
_BUSY = 0.5  # tasks a core that others had running
_RATIO_NOTE = "times that ovgen is better than the peer on the left: above 1 ovgen is ahead"


@dataclass(frozen=True, slots=True)
class Report:
    """All that there is to say about a run.

    Attributes:
        model: as the user named it.
        settings: the command's options.
        machine: see `ovgen.bench.machine`.
        engines: ovgen first.
        samples: what was measured.
        facts: by engine, what it told of itself.
    """

    model: str
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    engines: Sequence[Engine]
    samples: Samples
    facts: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain data: figures in seconds, tokens a second and bytes, with all their rounds."""
        return {
            "ovgen": ovgen.__version__,
            "model": self.model,
            "settings": dict(self.settings),
            "machine": dict(self.machine),
            "engines": {
                engine.name: {
                    "interpreter": engine.python,
                    "python": engine.python_version,
                    "packages": dict(engine.versions),
                    "properties": dict(engine.properties),
                    "facts": dict(self.facts.get(engine.name, {})),
                }
                for engine in self.engines
            },
            "figures": [self._figure(figure) for figure in self.samples.figures],
        }

    def _figure(self, figure: Figure) -> dict[str, Any]:
        rounds = self.samples.rounds(figure)
        return {
            "figure": figure.group,
            "at": figure.label,
            "unit": figure.unit,
            "better": "lower" if figure.is_better_when_lower else "higher",
            "medians": {name: self.samples.median(figure, name) for name in rounds},
            "ratios": {
                name: self.samples.ratio(figure, name) for name in rounds if name != OWN_NAME
            },
            "rounds": rounds,
        }

    def header(self) -> list[tuple[str, str]]:
        """Names and values: what was measured on what."""
        memory = self.machine["memory"]
        told = (
            self.machine["processor"],
            f"{self.machine['cores']} cores",
            "" if memory is None else f"{memory / 2**30:.0f} GiB",
            self.machine["platform"],
        )
        rows = [("model", self.model), ("machine", ", ".join(filter(None, told)))]
        rows += [(engine.name, self._described(engine)) for engine in self.engines]
        return [*rows, ("RATIO", _RATIO_NOTE)] if len(self.engines) > 1 else rows

    def _described(self, engine: Engine) -> str:
        own = [f"ovgen {ovgen.__version__}"] if engine.name == OWN_NAME else []
        packages = [f"{name} {version}" for name, version in engine.versions.items()]
        properties = [f"{key}={value}" for key, value in engine.properties.items()]
        attention = self.facts.get(engine.name, {}).get("attention")
        facts = [f"{attention} attention"] if attention else []
        return ", ".join([*own, *packages, f"Python {engine.python_version}", *properties, *facts])

    def rows(self) -> list[list[str]]:
        """The table: two columns of text, and all others numbers."""
        peers = [engine.name for engine in self.engines[1:]]
        header = ["FIGURE", "AT", OWN_NAME.upper()]
        for name in peers:
            header += [name.upper(), "RATIO"]
        rows = [header]
        for figure in self.samples.figures:
            row = [figure.group, figure.label, self._cell(figure, OWN_NAME)]
            for name in peers:
                ratio = self.samples.ratio(figure, name)
                row += [self._cell(figure, name), _NONE if ratio is None else f"{ratio:.2f}"]
            rows.append(row)
        return rows

    def _cell(self, figure: Figure, engine: str) -> str:
        median = self.samples.median(figure, engine)
        return _NONE if median is None else formatted(median, figure.unit)

    def notes(self) -> list[str]:
        """What is to be known about the table."""
        rounds = self.settings["rounds"]
        notes = [f"Medians of {rounds} rounds." if rounds > 1 else "One round alone."]
        load = self.machine["load"]
        if load is not None and load > _BUSY * self.machine["cores"]:
            notes.append(f"The machine was busy beforehand (load {load:.1f}): expect noise.")
        alone = [engine.name for engine in self.engines if not engine.kind.has_batches]
        if alone and "throughput" in self.settings["workloads"]:
            notes.append(
                f"Throughput of {' and '.join(alone)}: one request after another, "
                f"the first {SEQUENTIAL_REQUESTS} at most."
            )
        return notes


def formatted(value: float, unit: Unit) -> str:
    """A value for people."""
    if unit == "s":
        return f"{value * 1e3:,.{1 if value < 0.1 else 0}f} ms"
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB"
    return f"{value:,.{1 if value < 100 else 0}f} tokens/s"
