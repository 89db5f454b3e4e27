"""ovgen beside openvino-genai and llama.cpp on the same weights, interleaved, as ratios.

    python benchmarks/against_peers.py --genai PYTHON --llama-cpp PYTHON

PYTHON is the interpreter of an environment that has the peer installed (openvino-genai, or
llama-cpp-python); a peer that is left out is not measured. openvino-genai opens the IR that ovgen
exported, at its own defaults (a cache folder would slow its start: its graph cannot be cached);
llama.cpp opens the GGUF file. Every round runs each engine once, so that a machine that slows down
slows all of them; medians are reported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovgen.hub.resolve import resolve_model
from ovgen.model.resolve import resolve_folder

MODEL = "smollm2-135m-instruct"
QUESTION = "What is the capital of France?"
RESULTS = Path(__file__).parent / "results" / "against_peers.json"

# Each worker answers a line "PROMPT_TOKENS NEW_TOKENS" with its seconds to the first token and
# its mean seconds a token after it. Prompts differ from call to call: no prefix cache helps.
OVGEN = """
import sys
from ovgen import LLM
llm = LLM(sys.argv[1])
for call, line in enumerate(sys.stdin):
    count, new = map(int, line.split())
    ids = [1000 + (7 * i + 13 * call) % 20000 for i in range(count)]
    metrics = llm.generate(ids, max_new_tokens=new, ignore_eos=True).metrics
    print(metrics.ttft, metrics.tpot, flush=True)
"""
GENAI = """
import sys
import numpy as np
import openvino as ov
import openvino_genai as genai
pipeline = genai.LLMPipeline(sys.argv[1], "CPU")
for call, line in enumerate(sys.stdin):
    count, new = map(int, line.split())
    ids = np.array([[1000 + (7 * i + 13 * call) % 20000 for i in range(count)]])
    inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
    config = genai.GenerationConfig(max_new_tokens=new, ignore_eos=True, do_sample=False)
    metrics = pipeline.generate(inputs, config).perf_metrics
    print(metrics.get_ttft().mean / 1e3, metrics.get_tpot().mean / 1e3, flush=True)
"""
LLAMA_CPP = """
import sys
import time
from llama_cpp import Llama
llm = Llama(sys.argv[2], n_ctx=4096, n_threads=2, n_threads_batch=2, verbose=False)
for call, line in enumerate(sys.stdin):
    count, new = map(int, line.split())
    ids = [1000 + (7 * i + 13 * call) % 20000 for i in range(count)]
    llm.reset()
    times = [time.perf_counter()]
    for token in llm.generate(ids, top_k=1, temp=0.0):
        times.append(time.perf_counter())
        if len(times) > new:
            break
    print(times[1] - times[0], (times[-1] - times[1]) / (new - 1), flush=True)
"""
GENAI_ONCE = f"""
import sys
import openvino_genai as genai
pipeline = genai.LLMPipeline(sys.argv[1], "CPU")
print(pipeline.generate({QUESTION!r}, max_new_tokens=32))
"""
LLAMA_CPP_ONCE = f"""
import sys
from llama_cpp import Llama
llm = Llama(sys.argv[2], n_ctx=4096, n_threads=2, verbose=False)
messages = [{{"role": "user", "content": {QUESTION!r}}}]
print(llm.create_chat_completion(messages, max_tokens=32, temperature=0.0))
"""


@dataclass(frozen=True)
class Engine:
    """How to run one engine: a process that stays, and one that answers a question and ends."""

    name: str
    python: str
    worker: str
    once: list[str]


def main() -> None:
    """Measure, print a table, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genai", help="interpreter with openvino-genai")
    parser.add_argument("--llama-cpp", help="interpreter with llama-cpp-python")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    # Packages that are installed have bytecode, and ovgen shall have it from its second start on.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    folder, gguf = str(resolve_folder(MODEL)), str(resolve_model(MODEL).path)
    paths = [folder, gguf]
    engines = [Engine("ovgen", sys.executable, OVGEN, ["-m", "ovgen", "run", MODEL, QUESTION])]
    if arguments.genai:
        engines.append(Engine("openvino-genai", arguments.genai, GENAI, ["-c", GENAI_ONCE, *paths]))
    if arguments.llama_cpp:
        once = ["-c", LLAMA_CPP_ONCE, *paths]
        engines.append(Engine("llama.cpp", arguments.llama_cpp, LLAMA_CPP, once))
    figures = measure(engines, paths, arguments.rounds)
    report = {"machine": machine(engines), "seconds": figures}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print("\n".join(table(figures)))


def measure(engines: list[Engine], paths: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds by figure and engine."""
    samples: dict[str, dict[str, list[float]]] = {}

    def add(figure: str, engine: Engine, seconds: float) -> None:
        samples.setdefault(figure, {}).setdefault(engine.name, []).append(seconds)

    for round_ in range(rounds + 1):
        for engine in engines:
            seconds = timed(lambda engine=engine: run_once(engine))
            if round_:  # the first fills the caches
                add("process start to last token", engine, seconds)
    workers = {engine.name: start(engine, paths) for engine in engines}
    for round_ in range(rounds + 1):
        for engine in engines:
            for count, figure in ((512, "first token of 512"), (2048, "first token of 2048")):
                first, _ = ask(workers[engine.name], count, 2)
                if round_:
                    add(figure, engine, first)
            _, each = ask(workers[engine.name], 32, 96)
            if round_:
                add("each further token", engine, each)
    for worker in workers.values():
        worker.communicate()
    return {
        figure: {name: statistics.median(values) for name, values in by_engine.items()}
        for figure, by_engine in samples.items()
    }


def run_once(engine: Engine) -> None:
    """Answer the question in a process of its own."""
    subprocess.run([engine.python, *engine.once], check=True, capture_output=True)


def start(engine: Engine, paths: list[str]) -> subprocess.Popen[str]:
    """A worker that has loaded its model."""
    command = [engine.python, "-c", engine.worker, *paths]
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    ask(worker, 8, 2)
    return worker


def ask(worker: subprocess.Popen[str], count: int, new: int) -> tuple[float, float]:
    """Seconds to the first token of a prompt, and for each further one."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(f"{count} {new}\n")
    worker.stdin.flush()
    first, each = map(float, worker.stdout.readline().split())
    return first, each


def timed(call: Callable[[], Any]) -> float:
    """Seconds a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def machine(engines: list[Engine]) -> dict[str, str]:
    """What was measured on what."""
    versions = {
        "ovgen": "openvino", "openvino-genai": "openvino-genai", "llama.cpp": "llama-cpp-python",
    }  # fmt: skip
    found = {}
    for engine in engines:
        package = versions[engine.name]
        code = f"from importlib.metadata import version; print(version({package!r}))"
        done = subprocess.run([engine.python, "-c", code], capture_output=True, text=True)
        found[f"{engine.name}: {package}"] = done.stdout.strip()
    return {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "command": shlex.join(["python", "benchmarks/against_peers.py"]),
        **found,
    }


def processor() -> str:
    """The processor's name and vector extensions, where Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {key.strip(): value for key, value in facts.items()}
    flags = [flag for flag in ("avx512_vnni", "avx512_bf16", "amx_tile") if flag in facts["flags"]]
    return f"{facts['model name'].strip()} ({', '.join(flags)})"


def table(figures: dict[str, dict[str, float]]) -> list[str]:
    """Rows in Markdown: milliseconds, and a peer's time over ovgen's."""
    engines = list(next(iter(figures.values())))
    rows = [["", *engines], ["---"] * (1 + len(engines))]
    for figure, by_engine in figures.items():
        own = by_engine["ovgen"]
        times = by_engine.values()
        cells = [f"{t * 1e3:,.{1 if t < 0.1 else 0}f} ms" for t in times]
        ratios = [f" ({t / own:.2f})" for t in times]
        rows.append([figure, cells[0], *map("".join, zip(cells[1:], ratios[1:], strict=True))])
    return [f"| {' | '.join(row)} |" for row in rows]


if __name__ == "__main__":
    main()
