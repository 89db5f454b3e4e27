"""What choosing tokens costs: the whole engine over scripted logits, and its share with SmolLM2.

    python benchmarks/token_loop.py [--genai PYTHON]

First the token loop alone: an engine whose "device" gives ready-made logits of a vocabulary of
151,936 at once, for 1 and 64 requests; microseconds a token of a request, everything included
(scheduling, choosing, detokenizing). Then SmolLM2 at batch 1: how much of the wall time is spent
outside ``infer``; beside it, with --genai, what openvino-genai's own metrics say of the same IR in
the same run, interleaved. Medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openvino as ov
from against_peers import processor

from ovgen import LLM
from ovgen.engine.batch import ScheduledBatch
from ovgen.engine.engine import Engine
from ovgen.engine.output_processor import Arrival, OutputProcessor
from ovgen.engine.request_builder import Prompt
from ovgen.generation_config import GenerationConfig
from ovgen.model.paged_runner import PagedRunner
from ovgen.model.resolve import resolve_folder

VOCAB = 151_936
MODEL = "smollm2-135m-instruct"
RESULTS = Path(__file__).parent / "results" / "token_loop.json"
NUM_STEPS = 24
SAMPLED = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0, "seed": 1}
PENALTIES = {
    "repetition_penalty": 1.2,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "no_repeat_ngram_size": 3,
    "dry_multiplier": 0.8,
}
WORKLOADS = {
    "greedy": {},
    "top_p 0.9, temperature 0.8": SAMPLED,
    "all penalties, then the same": PENALTIES | SAMPLED,
    "4 beams": {"num_beams": 4, "early_stopping": "never"},
}

# Prints the milliseconds a token that openvino-genai spends outside its inference.
GENAI = """
import json, sys
import numpy as np
import openvino as ov
import openvino_genai as genai
pipeline = genai.LLMPipeline(sys.argv[1], "CPU")
for call, line in enumerate(sys.stdin):
    options = json.loads(line)
    ids = np.array([[1000 + (7 * i + 13 * call) % 20000 for i in range(32)]])
    inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
    config = genai.GenerationConfig(max_new_tokens=129, ignore_eos=True, **options)
    metrics = pipeline.generate(inputs, config).perf_metrics
    raw = metrics.raw_metrics
    inference = sum(raw.token_infer_durations[1:]) / 1e3
    total = metrics.get_tpot().mean * 128
    print(json.dumps([total, inference]), flush=True)
"""


class ScriptedRunner:
    """Implements ModelRunner: no device, logits made beforehand."""

    def __init__(self, num_rows: int) -> None:
        rng = np.random.default_rng(0)
        # As a model's are: most of the mass on some tens of tokens.
        # 78 MB at least, so that a step's logits are in no cache, however few requests there are.
        self._pool = rng.normal(0, 2.2, (max(num_rows, 128), VOCAB)).astype(np.float32)
        self._pool[:, rng.integers(0, VOCAB, 40)] += np.linspace(14, 6, 40, dtype=np.float32)
        self._stop = 0
        self.max_running_requests = 1 << 20
        self.has_padding = True
        self.num_blocks = self.block_size = 0
        self.block_store = None

    def start(self, batch: ScheduledBatch) -> None:
        start = self._stop if self._stop + batch.num_logits <= len(self._pool) else 0
        self._stop = start + batch.num_logits
        self._logits = self._pool[start : self._stop]

    def wait(self, timeout: float) -> np.ndarray:
        return self._logits

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


class PlainTokenizer:
    """A token is a character."""

    vocab_size = VOCAB
    special_ids: frozenset[int] = frozenset()
    bos_token = eos_token = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(char) for char in text]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(chr(32 + token_id % 90) for token_id in token_ids)

    def token_to_id(self, token: str) -> int | None:
        return ord(token)

    def id_to_token(self, token_id: int) -> str | None:
        return chr(32 + token_id % 90)


def token_loop(options: dict[str, object], num_requests: int, rounds: int) -> float:
    """Microseconds a token of a request."""
    rows = num_requests * int(options.get("num_beams", 1))
    runner = ScriptedRunner(rows)
    seconds = []
    for _ in range(rounds):
        engine = Engine(
            runner,
            OutputProcessor(PlainTokenizer(), load_time=0.0),
            context_length=4096,
            vocab_size=VOCAB,
            token_budget=1 << 20,
        )
        for number in range(num_requests):
            config = GenerationConfig(max_new_tokens=NUM_STEPS, **options).resolve()
            arrival = Arrival(time.perf_counter(), 0.0)
            prompt = Prompt([1000 + (7 * i + number) % 999 for i in range(512)])
            engine.add_request(engine.prepare(prompt, config, arrival), config, arrival)
        engine.step()  # begins and ends the prompts
        started = time.perf_counter()
        while engine.has_unfinished:
            engine.step()
        seconds.append((time.perf_counter() - started) / (NUM_STEPS - 1) / num_requests)
    return statistics.median(seconds) * 1e6


@contextmanager
def watched_infer() -> Iterator[list[float]]:
    """The seconds of every step that ``infer`` would take: to set its inputs, compute, and get its
    outputs. What is done while the device computes is not outside of it."""
    spans: list[float] = []
    begun = [0.0]
    start, wait = PagedRunner.start, PagedRunner.wait

    def timed_start(runner: PagedRunner, batch: ScheduledBatch) -> None:
        begun[0] = time.perf_counter()
        start(runner, batch)

    def timed_wait(runner: PagedRunner, timeout: float) -> np.ndarray | None:
        logits = wait(runner, timeout)
        if logits is not None:
            spans.append(time.perf_counter() - begun[0])
        return logits

    PagedRunner.start, PagedRunner.wait = timed_start, timed_wait
    try:
        yield spans
    finally:
        PagedRunner.start, PagedRunner.wait = start, wait


def share_outside_infer(llm: LLM, options: dict[str, object], call: int) -> tuple[float, float]:
    """Milliseconds a token in all, and outside infer, over 128 tokens after the first."""
    ids = [1000 + (7 * i + 13 * call) % 20000 for i in range(32)]
    with watched_infer() as spans:
        metrics = llm.generate(ids, max_new_tokens=129, ignore_eos=True, **options).metrics
    total = metrics.tpot * 1e3
    return total, total - sum(spans[1:]) / 128 * 1e3


def beside_genai(python: str | None, rounds: int) -> dict[str, dict[str, list[float]]]:
    """By workload and engine: milliseconds a token in all, and outside infer."""
    folder = str(resolve_folder(MODEL))
    workloads = {"greedy": {}, "top_p 0.9, temperature 0.8": SAMPLED}
    peer = None
    if python:
        command = [python, "-c", GENAI, folder]
        peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    found: dict[str, dict[str, list[list[float]]]] = {}
    with LLM(folder, attention_backend="paged") as llm:
        for call in range(rounds + 1):
            for name, options in workloads.items():
                figures = found.setdefault(name, {"ovgen": [], "openvino-genai": []})
                mine = share_outside_infer(llm, options, call)
                if call:  # the first one warms up
                    figures["ovgen"].append(list(mine))
                if peer:
                    names = ("do_sample", "temperature", "top_p")  # its top_k is off by default
                    same = {key: options[key] for key in names if key in options}
                    print(json.dumps(same), file=peer.stdin, flush=True)
                    total, inference = json.loads(peer.stdout.readline())
                    if call:
                        figures["openvino-genai"].append([total / 128, (total - inference) / 128])
    if peer:
        peer.stdin.close()
        peer.wait()
    return {
        name: {
            engine: [statistics.median(column) for column in zip(*rows, strict=True)]
            for engine, rows in engines.items()
            if rows
        }
        for name, engines in found.items()
    }


def loop_table(loop: dict[str, dict[str, float]]) -> list[str]:
    """The token loop's figures as the README shows them."""
    rows = ["| microseconds a token | 1 request | 64 requests |", "| --- | --- | --- |"]
    rows += [f"| {name} | {us['1']:,.0f} | {us['64']:,.0f} |" for name, us in loop.items()]
    return rows


def sentence(shares: dict[str, dict[str, list[float]]]) -> str:
    """What the README says of SmolLM2."""
    greedy, sampled = (shares[name] for name in list(WORKLOADS)[:2])
    total, outside = sampled["ovgen"]
    own, peer = (sampled[engine][0] - greedy[engine][0] for engine in ("ovgen", "openvino-genai"))
    share = 100 * outside / total
    return (
        f"With SmolLM2 at batch 1, {share:.1f}% of the time goes elsewhere than into `infer` when "
        f"sampling with top-p, and sampling adds {own:.2f} ms to a token, where openvino-genai's "
        f"adds {peer:.2f} ms."
    )


def main() -> None:
    """Measure, print tables, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genai", help="interpreter with openvino-genai")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    loop = {
        name: {str(n): token_loop(options, n, arguments.rounds) for n in (1, 64)}
        for name, options in WORKLOADS.items()
    }
    print("\n".join(loop_table(loop)))
    shares = beside_genai(arguments.genai, arguments.rounds)
    for name, engines in shares.items():
        for engine, (total, outside) in engines.items():
            share = 100 * outside / total
            print(f"{name}, {engine}: {total:.2f} ms a token, {outside:.3f} outside ({share:.1f}%)")
    machine = {
        "processor": processor(),
        "python": sys.version.split()[0],
        "openvino": ov.__version__,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    report = {"machine": machine, "microseconds": loop, "milliseconds": shares}
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
