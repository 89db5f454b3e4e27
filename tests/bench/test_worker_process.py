"""The bench's side of a worker: answers, ends of all kinds, and nothing left behind."""

from __future__ import annotations

import os

import pytest

from ovgen.bench.worker import Settings
from ovgen.bench.worker_process import WorkerProcess
from ovgen.errors import OvgenError

SETTINGS = Settings("m", None, "CPU", {}, 100)
JOB = {"job": "one", "prompt": [1] * 500, "new_tokens": 2}


def worker(engine, timeout=30.0):
    return WorkerProcess(engine, SETTINGS, timeout)


def test_answers(fake, fakes):
    with worker(fake("genai")) as process:
        process.receive()
        assert process.peak_rss == 1_000_000
        answer = process.ask(JOB)
        assert (answer["ttft"], answer["token_ids"]) == (0.5, [7, 7])
        assert process.peak_rss == 2_000_000
        assert process.facts["context_length"] == 4096
    assert fakes.log() == ["genai load 100 {}", "genai one 500 2"]
    process.close()  # once more does no harm


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("crashes_at", "genai's worker ended with exit code 3: RuntimeError: no more"),
        ("dies_at", "genai's worker was killed by SIGKILL and said nothing; it may have run out"),
        ("babbles_at", "genai's worker answered b'hello"),
    ],
)
def test_a_worker_that_fails(fake, behaviour, at, message):
    with worker(fake("genai", **{behaviour: at})) as process:  # noqa: SIM117
        with pytest.raises(OvgenError) as caught:
            receive_twice(process)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("at", [0, 1])
def test_a_worker_that_hangs(fake, fakes, at):
    # Loading comes with the start of an interpreter, which may take a while on a busy machine.
    with worker(fake("genai", hangs_at=at), timeout=3) as process:  # noqa: SIM117
        with pytest.raises(OvgenError, match="gave no answer within 3 s; give it more"):
            receive_twice(process)
    assert not is_alive(process)


def test_a_worker_that_is_left(fake):
    with worker(fake("genai")) as process:
        process.receive()
        assert is_alive(process)
    assert not is_alive(process)


def receive_twice(process: WorkerProcess) -> None:
    process.receive()
    process.ask(JOB)


def is_alive(process: WorkerProcess) -> bool:
    try:
        os.kill(process._process.pid, 0)
    except ProcessLookupError:
        return False
    return True
