"""What compression did to the weights: how many went into which format, and at what error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ovgen.export.checkpoint import Tensor
from ovgen.export.matrices import Format, SquaredError
from ovgen.export.weights import num_rows

_FLOATS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One compressed tensor.

    Attributes:
        name: of the tensor.
        fmt: as in the table, ``int4_sym, group 128``.
        num_values: in it.
        error: sums of squares.
    """

    name: str
    fmt: str
    num_values: int
    error: SquaredError

    @property
    def kind(self) -> str:
        """What the tensor is in its block: ``q_proj``, ``down_proj``, ``embed_tokens``."""
        return self.name.removesuffix(".weight").rsplit(".", 1)[-1]


@dataclass(frozen=True, slots=True)
class ReportRow:
    """Tensors of one kind or of one format.

    Attributes:
        label: of the kind or the format.
        formats: that occur.
        num_tensors: counted together.
        num_values: of all of them.
        share: of all values of the model's matrices, 0 to 1.
        relative_rms: root mean square of the error over that of the values.
    """

    label: str
    formats: tuple[str, ...]
    num_tensors: int
    num_values: int
    share: float
    relative_rms: float


@dataclass(slots=True)
class CompressionReport:
    """All matrices of an export, as they were written.

    Attributes:
        records: one a tensor.
        notes: what differs from what was asked for, in sentences.
    """

    records: list[TensorRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, tensors: Sequence[Tensor], fmt: Format, errors: Sequence[SquaredError]) -> None:
        """Take down one matrix, made of these tensors."""
        for tensor, error in zip(tensors, errors, strict=True):
            size = num_rows(tensor) * tensor.shape[-1]
            self.records.append(TensorRecord(tensor.name, label(fmt, tensor), size, error))

    def by_format(self) -> list[ReportRow]:
        """One row a format, the largest first."""
        return self._rows([record.fmt for record in self.records])

    def by_kind(self) -> list[ReportRow]:
        """One row a kind of tensor, as they come in the model."""
        rows = self._rows([record.kind for record in self.records])
        order = list(dict.fromkeys(record.kind for record in self.records))
        return sorted(rows, key=lambda row: order.index(row.label))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""

        def rows(of: list[ReportRow]) -> list[dict[str, Any]]:
            return [
                {
                    "label": row.label,
                    "formats": list(row.formats),
                    "num_tensors": row.num_tensors,
                    "num_values": row.num_values,
                    "share": row.share,
                    "relative_rms_error": row.relative_rms,
                }
                for row in of
            ]

        return {
            "formats": rows(self.by_format()),
            "kinds": rows(self.by_kind()),
            "notes": self.notes,
        }

    def to_text(self) -> str:
        """Two tables."""
        formats = [("weights", "share", "tensors", "error")]
        formats += [
            (row.label, f"{row.share:.1%}", str(row.num_tensors), f"{row.relative_rms:.3%}")
            for row in self.by_format()
        ]
        kinds = [("tensor", "share", "error", "weights")]
        kinds += [
            (row.label, f"{row.share:.1%}", f"{row.relative_rms:.3%}", "; ".join(row.formats))
            for row in self.by_kind()
        ]
        return "\n".join([*_columns(formats), "", *_columns(kinds), *self.notes])

    def _rows(self, labels: Sequence[str]) -> list[ReportRow]:
        total = sum(record.num_values for record in self.records)
        groups: dict[str, list[TensorRecord]] = {}
        for text, record in zip(labels, self.records, strict=True):
            groups.setdefault(text, []).append(record)
        rows = []
        for text, records in groups.items():
            error, size = SquaredError(), sum(record.num_values for record in records)
            for record in records:
                error.add(record.error)
            formats = tuple(dict.fromkeys(record.fmt for record in records))
            rows.append(
                ReportRow(text, formats, len(records), size, size / total, error.relative_rms)
            )
        return sorted(rows, key=lambda row: -row.num_values)


def label(fmt: Format, tensor: Tensor) -> str:
    """A format as the tables call it."""
    if fmt.kind == "dense":
        return _FLOATS[fmt.dtype]
    if fmt.grid is not None:
        return f"{tensor.dtype} as it is, group {fmt.grid.group}"
    return f"{fmt.kind}, " + (
        "per channel" if fmt.group == tensor.shape[-1] else f"group {fmt.group}"
    )


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
