"""Stands in for an interpreter that has an engine installed: it answers as a worker does.

It is copied, with a line of its own on top that says how it behaves, by conftest.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

BEHAVIOUR = globals().get("BEHAVIOUR", {})
FACTS = {"vocab_size": 320, "context_length": 4096, "attention": "imagined"}


def log(text: str) -> None:
    with Path(BEHAVIOUR["log"]).open("a") as file:
        file.write(f"{BEHAVIOUR['name']} {text}\n")


def answer(job: dict) -> dict:
    """Times that are a function of the request, so that tests can tell them."""
    speed = BEHAVIOUR.get("speed", 1.0)
    if job["job"] == "one":
        log(f"one {len(job['prompt'])} {job['new_tokens']}")
        token_ids = [7] * job["new_tokens"]
        seconds = len(job["prompt"]) / 1000 / speed
        return {"ttft": seconds, "tpot": 0.002 / speed, "token_ids": token_ids}
    log(f"many {len(job['prompts'])}")
    return {"tokens": sum(job["new_tokens"]), "seconds": sum(job["new_tokens"]) / 100 / speed}


def work() -> None:
    settings = json.loads(sys.stdin.readline())
    log(f"load {settings['num_context']} {json.dumps(settings['properties'])}")
    answered: dict = {}
    for number in range(1 << 30):
        if number == BEHAVIOUR.get("hangs_at"):
            log(f"hangs {os.getpid()}")
            time.sleep(1000)
        if number == BEHAVIOUR.get("crashes_at"):
            sys.stderr.write("Traceback\n  ...\nRuntimeError: no more\x1b[0m of this\n\n")
            sys.exit(3)
        if number == BEHAVIOUR.get("dies_at"):
            os.kill(os.getpid(), 9)
        if number == BEHAVIOUR.get("babbles_at"):
            print("hello", flush=True)
        peak = 1_000_000 * (number + 1)
        print(json.dumps({**answered, "facts": FACTS, "peak_rss": peak}), flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        answered = answer(json.loads(line))


def main(arguments: list[str]) -> None:
    if arguments[1] == "probe":
        versions = dict.fromkeys(arguments[3:], "1.2")
        found = {"has_module": BEHAVIOUR.get("installed", True), "python": "3.99"}
        print(json.dumps({**found, "versions": versions}))
    else:
        work()


if __name__ == "__main__":
    main(sys.argv[1:])
