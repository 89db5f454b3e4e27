"""How the time of a decoding step grows: with the requests that share it, and with their context.

    python benchmarks/scaling.py [--plot] [--from-results] [--quick]

First SmolLM2 over paged attention, greedy: the wall time of a step, the part of it inside
``infer``, and the rest, which is Python that the device waits for; medians over the steps. Then
Python alone, see `python_alone.py`. The exponent is the slope of the last three doublings in a
log-log plot: 1 is linear, 0 is constant.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from against_peers import processor
from python_alone import BATCHES, BLOCK, python_alone
from token_loop import MODEL

from ovgen import LLM
from ovgen.engine.batch import ScheduledBatch
from ovgen.model.inference import Inference
from ovgen.model.paged_runner import PagedRunner

RESULTS = Path(__file__).parent / "results" / "scaling.json"
PLOT = RESULTS.with_suffix(".png")

CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8000)
LARGE_BATCH = 8
LARGE_BATCH_CONTEXT = 2048  # and no longer ones, for the time it takes to get there
NUM_STEPS, NUM_WARM_UP = 40, 12
NUM_DOUBLINGS = 3
MAX_EXPONENT = 1.1  # what counts as linear


@dataclass(frozen=True)
class Step:
    """When a step began, when the device got its inputs, and when the logits were there."""

    num_rows: int
    is_decoding: bool
    began: float
    started: float
    ended: float


@contextmanager
def watched_steps() -> Iterator[list[Step]]:
    """The steps that paged runners compute meanwhile."""
    steps: list[Step] = []
    began, started = [0.0], [0.0]
    batches: list[ScheduledBatch] = []
    start, wait, run = PagedRunner.start, PagedRunner.wait, Inference.start

    def timed_start(runner: PagedRunner, batch: ScheduledBatch) -> None:
        began[0] = time.perf_counter()
        batches[:] = [batch]
        start(runner, batch)

    def timed_run(inference: Inference) -> None:
        started[0] = time.perf_counter()
        run(inference)

    def timed_wait(runner: PagedRunner, timeout: float) -> np.ndarray | None:
        logits = wait(runner, timeout)
        if logits is not None:
            (batch,) = batches
            now = time.perf_counter()
            rows = len(batch.scheduled)
            steps.append(Step(rows, batch.is_decoding, began[0], started[0], now))
        return logits

    PagedRunner.start, PagedRunner.wait, Inference.start = timed_start, timed_wait, timed_run
    try:
        yield steps
    finally:
        PagedRunner.start, PagedRunner.wait, Inference.start = start, wait, run


def device_point(llm: LLM, batch: int, context: int) -> dict[str, float]:
    """Median seconds of the steps of a batch around a context.

    What is longer or of more requests than before extends what is in the prefix cache.
    """
    # The prompts end one token into a block, so that all requests begin in the same step.
    num_prompt = (context - NUM_WARM_UP - NUM_STEPS // 2) // BLOCK * BLOCK + 1
    # Whole permutations of some tokens, which differ from request to request.
    prompts = [
        [1000 + (7919 * i * (row + 1) + 13 * row) % 40_009 for i in range(num_prompt)]
        for row in range(batch)
    ]
    llm.generate(prompts, max_new_tokens=1, ignore_eos=True)
    with watched_steps() as steps:
        llm.generate(prompts, max_new_tokens=NUM_WARM_UP + NUM_STEPS + 1, ignore_eos=True)
    pairs = [
        (before, step)
        for before, step in pairwise(steps)
        if before.is_decoding and step.is_decoding and before.num_rows == step.num_rows == batch
    ][-NUM_STEPS:]
    assert len(pairs) >= min(32, NUM_STEPS), "all requests decode together"
    step = [step.ended - before.ended for before, step in pairs]
    infer = [step.ended - step.began for _, step in pairs]
    return {
        "batch": batch,
        "context": context,
        "step": statistics.median(step),
        "infer": statistics.median(infer),
        "inputs": statistics.median([step.started - step.began for _, step in pairs]),
        "outside": statistics.median([a - b for a, b in zip(step, infer, strict=True)]),
    }


def device_points(batches: tuple[int, ...], contexts: tuple[int, ...]) -> dict[str, Any]:
    """SmolLM2's steps over batches, and over contexts at two batches."""
    with LLM(MODEL, attention_backend="paged") as llm:
        llm.generate([[1, 2, 3]] * 2, max_new_tokens=16, ignore_eos=True)
        return {
            "over batch": [device_point(llm, batch, contexts[0]) for batch in batches],
            "over context": [device_point(llm, 1, context) for context in contexts],
            "over context, larger batch": [
                device_point(llm, LARGE_BATCH, context)
                for context in contexts
                if context <= LARGE_BATCH_CONTEXT
            ],
        }


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """The slope of the last doublings in a log-log plot, by least squares."""
    last = slice(-NUM_DOUBLINGS - 1, None)
    return float(np.polyfit(np.log2(sizes[last]), np.log2(seconds[last]), 1)[0])


def device_exponent(points: list[dict[str, float]], axis: str, figure: str) -> float:
    """Of a series of SmolLM2's."""
    return exponent([p[axis] for p in points], [p[figure] for p in points])


def markdown(rows: list[list[str]]) -> list[str]:
    """The rows, the first of which is the head."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return [f"| {' | '.join(row)} |" for row in rows]


def tables(results: dict[str, Any]) -> list[str]:
    """Three tables as the README shows them: batch, context, Python alone."""
    return [
        *batch_table(results["device"]["over batch"]),
        "",
        *context_table(results["device"]),
        "",
        *alone_table(results["python_alone"]),
    ]


def batch_table(points: list[dict[str, float]]) -> list[str]:
    """SmolLM2's steps over the number of requests."""
    rows = [["requests at once", "step", "tokens/s", "outside `infer`", "of the step"]]
    for p in points:
        speed, share = p["batch"] / p["step"], 100 * p["outside"] / p["step"]
        times = [f"{p['step'] * 1e3:.1f} ms", f"{speed:,.0f}", f"{p['outside'] * 1e3:.2f} ms"]
        rows.append([f"{p['batch']}", *times, f"{share:.1f}%"])
    slopes = [device_exponent(points, "batch", figure) for figure in ("step", "outside")]
    rows.append(["exponent", f"{slopes[0]:.2f}", "", f"{slopes[1]:.2f}", ""])
    return markdown(rows)


def context_table(device: dict[str, list[dict[str, float]]]) -> list[str]:
    """SmolLM2's steps over the context."""
    one, large = device["over context"], device["over context, larger batch"]
    names = [f"{figure}, batch {b}" for b in (1, LARGE_BATCH) for figure in ("step", "outside")]
    rows = [["context", *names]]
    by_context = {p["context"]: p for p in large}
    for p in one:
        cells = [f"{p['context']:,}"]
        for q in (p, by_context.get(p["context"])):
            cells += (
                [f"{q['step'] * 1e3:.1f} ms", f"{q['outside'] * 1e3:.2f} ms"] if q else ["", ""]
            )
        rows.append(cells)
    figures = [(points, figure) for points in (one, large) for figure in ("step", "outside")]
    slopes = [f"{device_exponent(points, 'context', figure):.2f}" for points, figure in figures]
    rows.append(["exponent", *slopes])
    return markdown(rows)


def alone_table(series: dict[str, dict[str, list[float]]]) -> list[str]:
    """Python without a device."""
    rows = [["Python alone, a step over", "from", "to", "exponent"]]
    for name, points in series.items():
        sizes, seconds = points["sizes"], points["seconds"]
        ends = [f"{sizes[at]:,}: {seconds[at] * 1e6:,.0f} µs" for at in (0, -1)]
        rows.append([name, *ends, f"{exponent(sizes, seconds):.2f}"])
    return markdown(rows)


def faster_than_linear(results: dict[str, Any]) -> list[str]:
    """The series of Python that grow faster."""
    device = results["device"]
    slopes = {
        f"outside infer, {name}": device_exponent(
            points, "batch" if name == "over batch" else "context", "outside"
        )
        for name, points in device.items()
    }
    slopes |= {
        name: exponent(points["sizes"], points["seconds"])
        for name, points in results["python_alone"].items()
    }
    return [f"{name}: {slope:.2f}" for name, slope in slopes.items() if slope > MAX_EXPONENT]


def write_plot(path: Path, results: dict[str, Any]) -> None:
    """Four panels, log-log; needs matplotlib."""
    from matplotlib.figure import Figure
    from PIL import Image  # comes with it

    canvas = Figure((11, 7.6), layout="constrained")
    panels = list(canvas.subplots(2, 2).flat)
    device, alone = results["device"], results["python_alone"]
    lines = [
        (panels[0], "batch", "over batch", "", "C0"),
        (panels[1], "context", "over context", ", batch 1", "C0"),
        (panels[1], "context", "over context, larger batch", f", batch {LARGE_BATCH}", "C1"),
    ]
    for panel, axis, name, suffix, color in lines:
        sizes = [p[axis] for p in device[name]]
        for figure, style in (("step", "o-"), ("outside", "o:")):
            label = ("step" if figure == "step" else "outside infer") + suffix
            milliseconds = [p[figure] * 1e3 for p in device[name]]
            panel.plot(sizes, milliseconds, style, color=color, markersize=4, label=label)
    for name, points in alone.items():
        panel = panels[2] if " request" in f" {name}".split(",")[0] else panels[3]
        microseconds = [seconds * 1e6 for seconds in points["seconds"]]
        slope = exponent(points["sizes"], points["seconds"])
        label = f"{name}: exponent {slope:.2f}".replace("-0.00", "0.00")
        panel.plot(points["sizes"], microseconds, ".-", linewidth=1, label=label)
    panels[0].set(title="SmolLM2, context 128", xlabel="requests at once", ylabel="ms a step")
    panels[1].set(title="SmolLM2", xlabel="context, tokens", ylabel="ms a step")
    panels[2].set(title="Python alone", xlabel="requests, samples, beams", ylabel="µs a step")
    panels[3].set(title="Python alone", xlabel="tokens, blocks", ylabel="µs a step")
    for panel in panels:
        panel.set(yscale="log")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
        panel.tick_params(labelsize="small")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small" if panel in (panels[0], panels[1]) else "x-small")
    drawn = io.BytesIO()
    canvas.savefig(drawn, format="png", dpi=80)
    few = Image.open(drawn).convert("RGB").quantize(128, method=Image.Quantize.FASTOCTREE)
    few.save(path, optimize=True)  # half of the bytes


def measure(is_quick: bool) -> dict[str, Any]:
    """Everything."""
    batches, contexts = (BATCHES[:4], CONTEXTS[:4]) if is_quick else (BATCHES, CONTEXTS)
    began = time.perf_counter()
    alone = python_alone(is_quick)
    print(f"Python alone: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    device = device_points(batches, contexts)
    print(f"all: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    machine = {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "python": sys.version.split()[0],
        "openvino": ov.__version__,
        "numpy": np.__version__,
    }
    return {"machine": machine, "device": device, "python_alone": alone}


def main() -> None:
    """Measure, print tables, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", action="store_true", help=f"draw {PLOT.name}, with matplotlib")
    parser.add_argument("--from-results", action="store_true", help="of the last run")
    parser.add_argument("--quick", action="store_true", help="few sizes, and nothing is kept")
    arguments = parser.parse_args()
    if arguments.from_results:
        results = json.loads(RESULTS.read_text())
    else:
        results = measure(arguments.quick)
        if not arguments.quick:
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print("\n".join(tables(results)))
    print()
    print("faster than linear:", "; ".join(faster_than_linear(results)) or "nothing")
    if arguments.plot and not arguments.quick:
        write_plot(PLOT, results)


if __name__ == "__main__":
    main()
