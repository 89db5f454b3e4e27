"""A picture of the figures, with matplotlib, which is an extra."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovgen.bench.figures import Figure, Samples
from ovgen.errors import ConfigError, StorageError

_SCALES = {"s": (1e3, "ms"), "tokens/s": (1.0, "tokens/s"), "bytes": (1e-6, "MB")}
_PANEL = (5.0, 3.4)  # inches
_COLUMNS = 2


def require_matplotlib() -> None:
    """Raises ConfigError where matplotlib is missing: before anything is measured."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'ovgen[plot]'")


def write_plot(path: Path, samples: Samples, engines: Sequence[str], title: str) -> None:
    """Write a PNG with a panel of bars for each group of figures.

    Raises:
        StorageError: the file cannot be written.
    """
    from matplotlib.figure import Figure as Canvas  # not pyplot: that looks for a display

    groups: dict[str, list[Figure]] = {}
    for figure in samples.figures:
        groups.setdefault(figure.group, []).append(figure)
    num_rows = -(-len(groups) // _COLUMNS)
    canvas = Canvas((_COLUMNS * _PANEL[0], num_rows * _PANEL[1] + 0.4), layout="constrained")
    canvas.suptitle(title)
    panels = canvas.subplots(num_rows, _COLUMNS, squeeze=False).flat
    for panel, (group, figures) in zip(panels, groups.items(), strict=False):
        _draw(panel, group, figures, samples, engines)
    for panel in list(panels)[len(groups) :]:
        panel.remove()
    try:
        canvas.savefig(path, format="png", dpi=120)
    except OSError as exc:
        raise StorageError(f"cannot write {path}: {exc.strerror or exc}") from exc


def _draw(
    panel: Any, group: str, figures: Sequence[Figure], samples: Samples, engines: Sequence[str]
) -> None:
    scale, unit = _SCALES[figures[0].unit]
    width = 0.8 / len(engines)
    for index, name in enumerate(engines):
        medians = [samples.median(figure, name) for figure in figures]
        measured = [(at, value) for at, value in enumerate(medians) if value is not None]
        panel.bar(
            [at + (index - (len(engines) - 1) / 2) * width for at, _ in measured],
            [value * scale for _, value in measured],
            width,
            label=name,
        )
    better = "lower" if figures[0].is_better_when_lower else "higher"
    panel.set_title(f"{group} ({better} is better)", fontsize="medium")
    panel.set_ylabel(unit)
    panel.set_xticks(range(len(figures)), [figure.label for figure in figures], fontsize="small")
    panel.legend(fontsize="small")
