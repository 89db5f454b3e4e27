"""Parts of a step's work in several threads: each done once, and all of them before the end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from ovgen.decoding.row_threads import RowThreads


@pytest.mark.parametrize("num_parts", [0, 1, 2, 7, 100])
def test_each_part_is_done_once(num_parts: int):
    threads, done = RowThreads(), []
    for _ in range(20):
        done.clear()
        threads.run(done.append, num_parts)
        assert sorted(done) == list(range(num_parts))


def test_helpers_take_part():
    threads, names = RowThreads(3), set()

    def work(part: int) -> None:
        names.add(threading.current_thread().name)
        time.sleep(0.002)

    threads.run(work, 40)
    assert len(names) == 3


def test_an_error_of_any_part_is_raised():
    threads = RowThreads(2)

    def work(part: int) -> None:
        time.sleep(0.001)
        if part % 2:
            raise ZeroDivisionError(part)

    with pytest.raises(ZeroDivisionError):
        threads.run(work, 20)
    threads.run(lambda part: None, 20)


def test_the_end_of_the_interpreter_does_not_wait_for_them():
    code = """
import atexit
from ovgen.decoding.row_threads import RowThreads
threads, done = RowThreads(2), []
atexit.register(lambda: (threads.run(done.append, 5), print(sorted(done))))
threads.run(lambda part: None, 9)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "[0, 1, 2, 3, 4]\n"
    assert result.stderr == ""
