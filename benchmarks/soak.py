"""A soak of the paged engine: threads submit, stream, abort and drop requests at random over a KV
cache that is too small. Each request ends as it would alone, memory is flat, and no block is lost.

    python benchmarks/soak.py [--minutes 20] [--threads 32] [MODEL]

In exact precision, so that what a request gets does not depend on what is computed beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from ovgen import LLM, QueueFullError, RequestError

RESULTS = Path(__file__).parent / "results" / "soak.json"
TINY = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny" / "llama"
NUM_BLOCKS = 14
_GROWTH = 16.0  # MB of memory that may come between the second quarter and the last

# Options, and how many prompts of what length are asked with them.
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"do_sample": True, "top_p": 0.9, "top_k": 0, "seed": 7},
    {"do_sample": True, "top_k": 20, "seed": 3, "num_return_sequences": 3},
    {"num_beams": 3},
    {"repetition_penalty": 1.2, "logprobs": 2},
)
LENGTHS = (3, 20, 40, 75, 120)
TOO_LONG = (NUM_BLOCKS + 1) * 32


@dataclass
class Soak:
    """What is asked for, what it gives alone, and what happened."""

    llm: LLM
    wanted: list[tuple[list[int], dict[str, Any], list[tuple[int, ...]]]]
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def caller(self, seed: int) -> None:
        """One thread's life."""
        random = Random(seed)
        while not self.is_over.is_set() and not self.faults:
            try:
                self.one_request(random)
            except QueueFullError:
                self.counts["refused for want of room in the queue"] += 1
                time.sleep(random.random() * 0.05)
            except Exception as exc:  # reported, not lost with the thread
                self.faults.append(f"{type(exc).__name__}: {exc}")

    def one_request(self, random: Random) -> None:
        """Ask for something, and do something with it."""
        prompt, options, expected = random.choice(self.wanted)
        options = options | {
            "priority": random.choice((0, 0, 1)),
            "cache_salt": random.choice("ab"),
        }
        if random.random() < 0.02:
            return self.too_long(options)
        handle = self.llm.submit(prompt, **options)
        action = random.choice(("result", "result", "stream", "abort", "drop", "close stream"))
        if action == "drop":
            time.sleep(random.random() * 0.05)
            self.counts["dropped"] += 1
            return None
        if action == "abort":
            time.sleep(random.random() * 0.1)
            handle.abort()
        if action == "close stream":
            with handle.stream() as stream:
                next(stream, None)
            self.counts["streams closed"] += 1
            return None
        if action == "stream":
            *_, last = handle.stream()
            assert last.output is not None, "the last chunk has it"
        output = handle.result(timeout=600)
        found = [completion.token_ids for completion in output.outputs]
        if any(completion.finish_reason == "abort" for completion in output.outputs):
            self.counts["aborted"] += 1
            whole = {one[: len(mine)] for mine in found for one in expected}
            if "num_beams" not in options and not set(found) <= whole:
                self.faults.append(f"an aborted request gave {found}, not part of {expected}")
        elif found != expected:
            self.faults.append(f"{options} on {len(prompt)} tokens gave {found}, not {expected}")
        else:
            self.counts["as alone"] += 1
        return None

    def too_long(self, options: dict[str, Any]) -> None:
        """A request for which there will never be room is refused, and disturbs nobody."""
        try:
            self.llm.generate([5] * TOO_LONG, **options)
        except RequestError:
            self.counts["refused for good"] += 1
        else:
            self.faults.append("a request larger than the pool was served")


def what_is_wanted(folder: Path) -> list[tuple[list[int], dict[str, Any], list[tuple[int, ...]]]]:
    """Prompts and options, and the token ids of each alone, by the stateful graph."""
    found = []
    with LLM(folder, precision="exact", attention_backend="stateful") as llm:
        for number, length in enumerate(LENGTHS):
            prompt = [5 + (7 * i * (number + 1)) % 300 for i in range(length)]
            for kind, extra in enumerate(KINDS):
                options = {"max_new_tokens": 8 + 9 * kind, "ignore_eos": True, **extra}
                output = llm.generate(prompt, **options)
                ids = [completion.token_ids for completion in output.outputs]
                found.append((prompt, options, ids))
    return found


def memory() -> float:
    """MB of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def soak(folder: Path, seconds: float, num_threads: int, seed: int = 0) -> dict[str, Any]:
    """Let threads loose on an LLM; gives what happened, its ``faults`` first."""
    wanted = what_is_wanted(folder)
    with LLM(
        folder,
        precision="exact",
        attention_backend="paged",
        kv_cache_tokens=NUM_BLOCKS * 32,
        max_waiting_requests=num_threads // 2,
        token_budget=48,
    ) as llm:
        state = Soak(llm, wanted)
        threads = [
            threading.Thread(target=state.caller, args=(seed + n,), daemon=True)
            for n in range(num_threads)
        ]
        for thread in threads:
            thread.start()
        sizes = []
        for _ in range(40):
            sizes.append(memory())
            if state.faults or state.is_over.wait(seconds / 40):
                break
        state.is_over.set()
        for thread in threads:
            thread.join(700)
        alive = sum(thread.is_alive() for thread in threads)
        if alive:
            state.faults.append(f"{alive} threads are still waiting")
        llm.generate([5, 6], max_new_tokens=1)  # whatever was dropped is gone with this
        pool = llm._service.open()._builder.blocks
        assert pool is not None
        blocks = pool.num_free, pool.num_blocks
    quarter = max(1, len(sizes) // 4)
    growth = statistics.median(sizes[-quarter:]) - statistics.median(sizes[quarter : 2 * quarter])
    if growth > _GROWTH:
        state.faults.append(f"memory grew by {growth:.0f} MB")
    if blocks != (NUM_BLOCKS, NUM_BLOCKS):
        state.faults.append(f"{blocks[0]} of {blocks[1]} blocks are free at the end")
    return {
        "faults": state.faults,
        "seconds": seconds,
        "threads": num_threads,
        "counts": dict(state.counts),
        "memory_mb": [round(size, 1) for size in sizes],
    }


def main() -> None:
    """Run it, print what happened, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=TINY, help="an IR folder")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--threads", type=int, default=32)
    arguments = parser.parse_args()
    report = soak(arguments.model, arguments.minutes * 60, arguments.threads)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({**report, "memory_mb": report["memory_mb"][:: max(1, 5)]}, indent=2))
    raise SystemExit(1 if report["faults"] else 0)


if __name__ == "__main__":
    main()
