"""ovgen's export beside optimum-intel's: what it costs, how fast and how faithful the result is.

    python benchmarks/export.py CHECKPOINT --optimum PYTHON --genai PYTHON

CHECKPOINT is a folder of transformers; PYTHON an interpreter with optimum-intel, or openvino-genai.
Both tools write the same mode, group size and ratio. Speed: both IRs in ovgen (paged) and in
openvino-genai, in turns, medians. Fidelity: against optimum's float32 IR, which is transformers'
own graph. What is left out keeps its old figures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from against_peers import GENAI, OVGEN, Engine, ask, machine, start

from ovgen import LLM
from ovgen.evaluation.divergence import CHUNK, compare, reference
from ovgen.evaluation.passage import PASSAGE
from ovgen.text.tokenizer import load_tokenizer

RESULTS = Path(__file__).parent / "results" / "export.json"
PARTS = ("footprint", "cost", "speed", "fidelity")
TOOLS = ("ovgen", "optimum")
PREFILL, DECODE, NEW = 512, 32, 96  # tokens of a prompt, of another, and after that one
Figures = dict[str, dict[str, float]]  # by tool

FOOTPRINT = """
from importlib.metadata import distributions
files = [path.locate() for one in distributions() if one.name not in ("pip", "setuptools")
         for path in one.files or ()]
print(sum(path.stat().st_size for path in files if path.is_file()))
"""
VERSION = "from importlib.metadata import version; print(version('optimum-intel'))"


@dataclass(frozen=True)
class Case:
    """One way to store the weights."""

    mode: str
    group: int | None = None
    ratio: float | None = None

    @property
    def name(self) -> str:
        """As ``int4_sym-64-0.8``."""
        return "-".join(str(part) for part in (self.mode, self.group, self.ratio) if part)

    def options(self, tool: str) -> list[str]:
        """The tool's."""
        options = ["--group-size", str(self.group)] if self.group else []
        options += ["--ratio", str(self.ratio)] if self.ratio else []
        if tool == "ovgen":
            return [*options, "--weights", self.mode]
        bits, _, kind = self.mode.replace("auto", "int8_asym").partition("_")
        options += ["--sym"] if kind == "sym" else []
        options += ["--group-size-fallback", "adjust"] if bits == "int4" else []
        return ["--weight-format", bits, *options]


# `auto` is ovgen's default, beside optimum's for large models: int8_asym, a scale a row.
CASES = [
    Case("auto"), Case("fp32"), Case("fp16"), Case("int8_sym", -1), Case("int8_asym", -1),
    *(Case(mode, group, ratio) for mode in ("int4_sym", "int4_asym")
      for group in (128, 64) for ratio in (1.0, 0.8)),
]  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """The interpreters, and where the IRs are."""

    checkpoint: str
    work: Path
    optimum: str
    genai: str

    def path(self, tool: str, case: Case) -> Path:
        """The folder of an IR."""
        return self.work / f"{tool}-{case.name}"

    def command(self, tool: str, case: Case) -> list[str]:
        """What exports it."""
        options, folder = case.options(tool), str(self.path(tool, case))
        if tool == "ovgen":
            return [sys.executable, "-m", "ovgen", "export", *options, self.checkpoint, folder]
        cli = [str(Path(self.optimum).with_name("optimum-cli")), "export", "openvino", *options]
        return [*cli, "--task", "text-generation-with-past", "--model", self.checkpoint, folder]

    def exported(self, tool: str, case: Case) -> Path:
        """The folder, with an IR."""
        if not self.path(tool, case).exists():
            subprocess.run(self.command(tool, case), check=True, capture_output=True)
        return self.path(tool, case)


def main() -> None:
    """Measure, keep the figures, and print all there are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--optimum", required=True, help="interpreter with optimum-intel")
    parser.add_argument("--genai", required=True, help="interpreter with openvino-genai")
    parser.add_argument("--clean", help="interpreter with nothing but ovgen, for the footprint")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--rounds", type=int, default=7, help="of speed; cost takes a third")
    parser.add_argument("--work", type=Path, help="where IRs are kept")
    arguments = parser.parse_args()
    cases = [case for case in CASES if not arguments.case or case.name in arguments.case]
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    engines = [("ovgen", sys.executable), ("openvino-genai", arguments.genai)]
    report["machine"] = machine([Engine(name, python, "", []) for name, python in engines])
    peer = {"optimum: optimum-intel": told(arguments.optimum, VERSION)}
    report["machine"] |= peer | {"command": "python benchmarks/export.py"}
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(arguments.checkpoint, work, arguments.optimum, arguments.genai)
        for part in arguments.part or PARTS:
            found: dict[str, Figures] = report.setdefault(part, {})
            if part == "footprint" and arguments.clean:
                pythons = {"ovgen": arguments.clean, "optimum": arguments.optimum}.items()
                found["pip install"] = {
                    t: {"MB": int(told(p, FOOTPRINT)) / 1e6} for t, p in pythons
                }
            elif part == "fidelity":
                found |= fidelity(bench, cases)
            elif part in ("cost", "speed"):
                measure = cost if part == "cost" else speed
                found |= {case.name: measure(bench, case, arguments.rounds) for case in cases}
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print("\n".join(line for part in PARTS if report.get(part) for line in table(part, report)))


def told(python: str, code: str) -> str:
    """What an interpreter prints."""
    return subprocess.check_output([python, "-c", code], text=True).strip()


def cost(bench: Bench, case: Case, rounds: int) -> Figures:
    """Of the whole process, and the size of the weights."""
    samples: dict[str, list[tuple[float, float]]] = {tool: [] for tool in TOOLS}
    for tool in TOOLS * max(1, rounds // 3):
        shutil.rmtree(bench.path(tool, case), ignore_errors=True)
        samples[tool].append(watched(bench.command(tool, case)))
    found = {}
    for tool in TOOLS:
        seconds, peak = map(statistics.median, zip(*samples[tool], strict=True))
        size = (bench.path(tool, case) / "openvino_model.bin").stat().st_size / 1e6
        found[tool] = {"seconds": seconds, "peak MB": peak, "weights MB": size}
    return found


def watched(command: list[str]) -> tuple[float, float]:
    """Seconds that a command takes, and the megabytes that its processes hold together at most."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.02)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - started, peak / 1e6


def resident(pid: int) -> int:
    """Bytes of a process and those it started in memory, mapped files too (Linux)."""
    process, total = Path(f"/proc/{pid}"), 0
    with suppress(OSError):  # it has ended
        total += int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    for path in process.glob("task/*/children"):
        with suppress(OSError):
            total += sum(resident(int(child)) for child in path.read_text().split())
    return total


def speed(bench: Bench, case: Case, rounds: int) -> Figures:
    """Milliseconds to a prompt's first token, and for each one after another, by runtime."""
    runtimes = {"ovgen": (sys.executable, OVGEN), "genai": (bench.genai, GENAI)}
    # openvino-genai needs a tokenizer's graph, which not every tokenizer can be; ids are given.
    for path in bench.exported("optimum", case).glob("openvino_*tokenizer.*"):
        if not (bench.exported("ovgen", case) / path.name).exists():
            shutil.copy(path, bench.path("ovgen", case))
    keys = [(tool, runtime) for tool in TOOLS for runtime in runtimes]
    workers = [start(Engine(r, *runtimes[r], []), [str(bench.path(t, case))]) for t, r in keys]
    rows = [
        [(ask(worker, PREFILL, 2)[0], ask(worker, DECODE, NEW)[1]) for worker in workers]
        for _ in range(rounds + 1)
    ]
    found: Figures = {tool: {} for tool in TOOLS}
    columns = zip(*rows[1:], strict=True)  # the first warms up
    for (tool, runtime), worker, samples in zip(keys, workers, columns, strict=True):
        worker.communicate()
        first, each = map(statistics.median, zip(*samples, strict=True))
        found[tool] |= {f"{runtime} prefill": first * 1e3, f"{runtime} decode": each * 1e3}
    return found


def fidelity(bench: Bench, cases: list[Case]) -> dict[str, Figures]:
    """KL divergence by case: of the weights alone, and as the IR usually runs."""
    windows = [load_tokenizer(Path(bench.checkpoint)).encode(PASSAGE, add_special_tokens=False)]
    with load(bench.exported("optimum", Case("fp32")), "exact") as llm:
        expected = reference(llm, windows, llm.vocab_size)
    found: dict[str, Figures] = {case.name: {tool: {} for tool in TOOLS} for case in cases}
    for case in cases:
        for tool in TOOLS:
            for precision in ("exact", "default"):
                with load(bench.exported(tool, case), precision) as llm:
                    kl = compare(expected, llm, windows).kl
                means = {"mean": float(kl.mean()), "median": max(0.0, float(np.median(kl)))}
                found[case.name][tool] |= {f"{precision} {k}": v for k, v in means.items()}
    return found


def load(folder: Path, precision: str) -> LLM:
    """A model all of whose logits can be read."""
    return LLM(
        folder, precision=precision, properties={"CACHE_DIR": ""}, profile="none",
        attention_backend="stateful", token_budget=CHUNK, prefix_caching=False,
    )  # fmt: skip


def table(part: str, report: dict[str, Any]) -> list[str]:
    """Rows in Markdown: ovgen's figure, optimum's, and the first over the second."""
    figures = list(next(iter(report[part].values()))["ovgen"])
    lines = [f"| {' | '.join([part, *figures])} |", "|---" * (1 + len(figures)) + "|"]
    for name, tools in report[part].items():
        pairs = [[tools[tool][figure] for tool in TOOLS] for figure in figures]
        cells = [f"{a:.4g} / {b:.4g}" + (f" ({a / b:.3g})" if b else "") for a, b in pairs]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
