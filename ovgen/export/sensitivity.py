"""Which weights stay in 8 bits when only a share of them goes to 4: those that would lose most."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ovgen.export import quantize
from ovgen.export.checkpoint import Tensor
from ovgen.export.weights import num_rows

_SAMPLED_ROWS = 64
# Queries, keys and values are computed in one matmul, and experts are: they stay together.
_QKV = re.compile(r"[qkv]_proj")
_EXPERT = re.compile(r"\bexperts\.\d+\.")


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Tensors that take their format together.

    Attributes:
        names: of the tensors.
        size: values of all of them.
        loss: the squared error in 4 bits over the values' own square.
    """

    names: tuple[str, ...]
    size: int
    loss: float


def eight_bit_names(
    tensors: Mapping[str, Tensor],
    ratio: float,
    group_of: Callable[[Tensor], int | None],
    release: Callable[[], None],
) -> frozenset[str]:
    """The tensors that stay in 8 bits so that no more than this share of values is in 4.

    Args:
        tensors: those that may go to 4 bits.
        ratio: 0 to 1.
        group_of: neighbours that share a scale, for a tensor; None where it cannot be in 4 bits.
        release: called now and then, to let go of pages that were read.
    """
    together: dict[str, list[Tensor]] = {}
    for tensor in tensors.values():
        together.setdefault(_family(tensor.name), []).append(tensor)
    candidates = []
    for members in together.values():
        groups = [group_of(tensor) for tensor in members]
        candidates.append(_candidate(members, groups))
        release()
    # Every matrix's loss counts alike, whatever its size: a small one gains as much in 8 bits as a
    # large one, and takes less of the budget.
    budget = ratio * sum(candidate.size for candidate in candidates)
    used = 0
    kept: set[str] = set()
    for candidate in sorted(candidates, key=lambda candidate: candidate.loss / candidate.size):
        if used + candidate.size <= budget:
            used += candidate.size
        else:
            kept.update(candidate.names)
    return frozenset(kept)


def _candidate(members: list[Tensor], groups: list[int | None]) -> _Candidate:
    error = square = 0.0
    for tensor, group in zip(members, groups, strict=True):
        rows = num_rows(tensor)
        picked = np.linspace(0, rows - 1, min(_SAMPLED_ROWS, rows)).astype(np.intp)
        values = tensor.values(picked).reshape(-1, group or tensor.shape[-1])
        rounded = quantize.symmetric4(values, np.float32, search=False).values()
        error += float(np.square(rounded - values).sum()) * rows / len(picked)
        square += float(np.square(values).sum()) * rows / len(picked)
    sizes = sum(num_rows(tensor) * tensor.shape[-1] for tensor in members)
    return _Candidate(tuple(t.name for t in members), sizes, error / max(square, 1e-30))


def _family(name: str) -> str:
    return _EXPERT.sub("experts.", _QKV.sub("qkv", name))
