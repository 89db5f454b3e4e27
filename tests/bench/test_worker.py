"""The side of a worker that all engines share, and how it comes to run in any interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from ovgen.bench.engines import WORKER_MAIN
from ovgen.bench.worker import Clock, num_cores, peak_rss

SETTINGS = {"model": "m", "gguf": None, "device": "CPU", "properties": {}, "num_context": 9}
ENGINE = """
import os, sys, time, types
from ovgen.bench import worker

class Engine:
    def __init__(self, settings):
        print("noise of a library")
        os.write(1, b"and of a native one\\n")
        self.settings = settings
    def facts(self):
        return {"model": self.settings.model}
    def one(self, prompt, new_tokens):
        if new_tokens == 0:
            raise ValueError("no\\n  tokens")
        if new_tokens == 1000:
            time.sleep(1000)
        return worker.Answer(0.5, 0.25, prompt * new_tokens)
    def many(self, prompts, new_tokens):
        return sum(new_tokens)

sys.modules["ovgen.bench.fake"] = types.SimpleNamespace(load=Engine)
worker.run("fake")
"""


@contextmanager
def started():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", ENGINE], text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(process, message):
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def test_jobs():
    with started() as process:
        ready = ask(process, SETTINGS)
        assert ready.pop("peak_rss") > 1_000_000
        assert ready == {"facts": {"model": "m"}}
        one = ask(process, {"job": "one", "prompt": [4, 5], "new_tokens": 2})
        assert (one["ttft"], one["tpot"], one["token_ids"]) == (0.5, 0.25, [4, 5, 4, 5])
        many = ask(process, {"job": "many", "prompts": [[1], [2]], "new_tokens": [3, 4]})
        assert (many["tokens"], many["seconds"] >= 0) == (7, True)
        process.stdin.close()
        assert process.wait(10) == 0
        assert process.stderr.read().splitlines() == ["noise of a library", "and of a native one"]


def test_an_error_ends_it_with_one_last_line():
    with started() as process:
        ask(process, SETTINGS)
        process.stdin.write('{"job": "one", "prompt": [4], "new_tokens": 0}\n')
        process.stdin.flush()
        assert process.stdout.read() == ""
        assert process.wait(10) == 1
        assert process.stderr.read().splitlines()[-1] == "ValueError: no tokens"


def test_it_ends_with_its_stdin_whatever_it_is_doing():
    with started() as process:
        ask(process, SETTINGS)
        process.stdin.write('{"job": "one", "prompt": [4], "new_tokens": 1000}\n')
        process.stdin.flush()
        time.sleep(0.1)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(10) == 0


def test_it_runs_where_nothing_is_installed():
    """-S leaves out site-packages, and with them ovgen and all that it needs."""
    bare = [sys.executable, "-I", "-S"]
    assert subprocess.run([*bare, "-c", "import ovgen"], capture_output=True).returncode == 1
    command = [*bare, str(WORKER_MAIN), "probe", "json", "no-such-package"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    version = ".".join(map(str, sys.version_info[:3]))
    assert found == {"has_module": True, "python": version, "versions": {}}
    worker = [*bare, str(WORKER_MAIN), "genai_worker"]
    done = subprocess.run(worker, input=json.dumps(SETTINGS) + "\n", capture_output=True, text=True)
    assert done.returncode in (0, 1)  # 0 where it saw the end of its stdin first
    if done.returncode:
        assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'numpy'"


@pytest.mark.parametrize("module", ["no_such_module", "no_such_package.module"])
def test_a_module_that_is_missing(module):
    command = [sys.executable, str(WORKER_MAIN), "probe", module, "numpy"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert found["has_module"] is False
    assert list(found["versions"]) == ["numpy"]


def test_clock():
    clock = Clock()
    for _ in range(3):
        time.sleep(0.002)
        clock.tick()
    answer = clock.answer([4, 5, 6])
    assert answer.ttft >= 0.002
    assert answer.tpot >= 0.002
    assert answer.token_ids == [4, 5, 6]
    clock = Clock()
    clock.tick()
    assert clock.answer([4]).tpot == 0.0


def test_what_the_process_tells_of_itself():
    peak = peak_rss()
    assert peak is not None
    assert 10_000_000 < peak < 1 << 40
    assert 1 <= num_cores() <= (os.cpu_count() or 1)
