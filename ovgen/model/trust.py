"""Whether a graph computes the same with paged attention as without: checked once, and recorded.

OpenVINO's PagedAttention transformation takes some graphs that it then computes wrongly (MPT in
2026.4), so that a graph is served by it only after both have given the same logits.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import openvino as ov

from ovgen.engine.batch import ScheduledBatch, ScheduledSequence
from ovgen.engine.sequence import Request, Sequence
from ovgen.engine_config import EngineConfig
from ovgen.errors import StorageError, UnsupportedModelError
from ovgen.model.loader import load_model
from ovgen.model.paged_model import load_paged_model
from ovgen.model.paged_runner import PagedRunner
from ovgen.model.profile import model_digest
from ovgen.model.side_file import side_paths, write_side_file
from ovgen.model.stateful_runner import StatefulRunner

Runner: TypeAlias = StatefulRunner | PagedRunner

VERDICT_NAME = "ovgen_paged.json"

_VERSION = 2  # of the check
_TOLERANCE = 1e-3  # of the range of a row's logits; rounding makes less than a tenth of that
_LENGTHS = (96, 45)  # tokens: some blocks each, none of them full
_MAX_WINDOW = 4096  # of a sliding attention, beyond which it is not looked at
_NUM_DECODED = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the check said of a model.

    Attributes:
        is_right: whether its attention may be paged.
        reason: why not.
        model: digest of the model's files.
        openvino: the version that it was checked with.
        device: that it was checked on.
        version: of the check.
    """

    is_right: bool
    reason: str
    model: str
    openvino: str
    device: str
    version: int = _VERSION


def recorded_verdict(folder: Path, device: str) -> Verdict | None:
    """What was recorded of these model files on a device, if anything sound was."""
    wanted = (model_digest(folder), ov.get_version(), device, _VERSION)
    for path in side_paths(folder, VERDICT_NAME, "paged"):
        try:
            verdict = Verdict(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError):
            continue
        if (verdict.model, verdict.openvino, verdict.device, verdict.version) == wanted:
            return verdict if isinstance(verdict.is_right, bool) else None
    return None


def check_paging(folder: Path, device: str) -> Verdict:
    """Compare both runners on a few tokens in exact precision, and record the verdict.

    Takes two compilations, one after the other.

    Raises:
        DeviceError: the device failed, which says nothing of the graph.
    """
    reason = _difference(folder, EngineConfig(device=device, precision="exact"))
    verdict = Verdict(reason is None, reason or "", model_digest(folder), ov.get_version(), device)
    content = json.dumps(asdict(verdict)).encode()
    with suppress(StorageError):  # only costs the next load the check
        write_side_file(side_paths(folder, VERDICT_NAME, "paged"), content)
    return verdict


def _difference(folder: Path, config: EngineConfig) -> str | None:
    try:
        loaded = load_model(folder, config, None)
        stateful = StatefulRunner(loaded.compiled, loaded.weights)
        lengths = [min(n, loaded.context_length) for n in (_long(folder), _LENGTHS[1])]
        rng = np.random.default_rng(0)
        prompts = [tuple(rng.integers(0, loaded.vocab_size, n).tolist()) for n in lengths]
        wanted = [_alone(stateful, number, prompt) for number, prompt in enumerate(prompts)]
        stateful.close()
        del loaded
        paged = PagedRunner(
            load_paged_model(folder, config, num_blocks=sum(lengths)), max_running_requests=2
        )
        found = _together(paged, prompts)
        paged.close()
    except UnsupportedModelError as exc:
        return str(exc)
    for number, (row, other) in enumerate(zip(wanted * 2, found, strict=True)):
        allowed = _TOLERANCE * float(row.max() - row.min())
        difference = float(np.abs(row - other).max())
        if not difference <= allowed:
            return (
                f"logits after {(lengths * 2)[number]} tokens differ by {difference:.2g}, "
                f"where {allowed:.2g} is rounding"
            )
    return None


def _alone(runner: Runner, number: int, prompt: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return _step(runner, [(Sequence(number, prompt), len(prompt))])[0]


def _together(runner: PagedRunner, prompts: list[tuple[int, ...]]) -> list[npt.NDArray[np.float32]]:
    """The logits after each prompt, and these again of steps with one row: in one batch, with a
    cut in the first prompt, and the last tokens one by one."""
    rows = [Sequence(number, prompt) for number, prompt in enumerate(prompts)]
    first = 0
    for row in rows:
        stop = first + -(-row.num_tokens // runner.block_size)
        row.block_table, first = list(range(first, stop)), stop
    cuts = [(len(prompt) // 3, len(prompt) - _NUM_DECODED) for prompt in prompts]
    for counts in ([cut for cut, _ in cuts], [end - cut for cut, end in cuts]):
        _step(runner, list(zip(rows, counts, strict=True)))
    logits = []
    for _ in range(_NUM_DECODED):
        logits = _step(runner, [(row, 1) for row in rows])
    for row in rows:  # once more, for a step of one token may be another graph's
        row.num_computed_tokens -= 1
        logits += _step(runner, [(row, 1)])
    return logits


def _step(runner: Runner, rows: list[tuple[Sequence, int]]) -> list[npt.NDArray[np.float32]]:
    """Compute the next tokens of rows; the logits of the last of each."""
    scheduled = tuple(
        ScheduledSequence(
            Request(row.seq_id, row.prompt_token_ids, 1, frozenset(), None, [row]), row, count, 1
        )
        for row, count in rows
    )
    runner.start(ScheduledBatch(scheduled))
    logits = None
    while logits is None:
        logits = runner.wait(0.05)
    for row, count in rows:
        row.num_computed_tokens += count
    return [row.copy() for row in logits]


def _long(folder: Path) -> int:
    """Tokens of the longer probe: beyond a sliding window, where there is one."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        window = (config.get("text_config") or config).get("sliding_window")
    except (OSError, ValueError, AttributeError, RecursionError):
        window = None
    is_known = isinstance(window, int) and 0 < window <= _MAX_WINDOW
    return max(_LENGTHS[0], window + _LENGTHS[1]) if is_known else _LENGTHS[0]
