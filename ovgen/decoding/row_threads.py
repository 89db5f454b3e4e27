"""Threads that share the rows of a step: numpy computes without the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_MOST = 4  # they hand the interpreter's lock to each other between any two calls


class RowThreads:
    """The calling thread and some helpers, which begin when they are first of use.

    Args:
        num_threads: at most; None: one for each processor, but not many.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        self._num_helpers = (num_threads or min(_MOST, os.cpu_count() or 1)) - 1
        self._pool: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[int], object], num_parts: int) -> None:
        """Call ``work`` for each part, in any order and thread; back when all are done."""
        parts = count()

        def go_on() -> None:
            while (part := next(parts)) < num_parts:
                work(part)

        helpers = self._helped_by(go_on, min(self._num_helpers, num_parts - 1))
        try:
            go_on()
        finally:
            for helper in helpers:
                if not helper.cancel():  # one that has not begun finds nothing left to do
                    helper.result()

    def _helped_by(self, work: Callable[[], None], number: int) -> list[Future[None]]:
        helpers: list[Future[None]] = []
        if number > 0:
            if self._pool is None:
                # Not needed for the first request of a process.
                from concurrent.futures import ThreadPoolExecutor

                self._pool = ThreadPoolExecutor(self._num_helpers, "ovgen rows")
            with suppress(RuntimeError):  # the interpreter ends: no thread takes anything on
                for _ in range(number):
                    helpers.append(self._pool.submit(work))
        return helpers
