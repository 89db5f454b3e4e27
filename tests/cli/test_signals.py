"""Signals become one KeyboardInterrupt, which nothing swallows and nothing repeats."""

from __future__ import annotations

import signal
import sys
import threading
import time

import pytest

from ovgen.cli import signals as module
from ovgen.cli.signals import Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts(number):
    with Signals() as signals:
        assert signals.received is None
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert signals.received == number


def test_everything_is_put_back():
    hook = sys.unraisablehook
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Signals() as signals:
        assert signal.getsignal(signal.SIGINT) not in before
        signals.ignore()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert sys.unraisablehook is hook


def test_further_signals_wait_for_the_clean_up(monkeypatch):
    with Signals():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(module, "CLEAN_UP_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_a_destructor_swallows_comes_again():
    class Swallower:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with Signals() as signals:
        swallower = Swallower()
        del swallower
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            time.sleep(10)


def test_other_unraisable_errors_go_where_they_went(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)

    class Broken:
        def __del__(self) -> None:
            raise ValueError("broken")

    with Signals():
        broken = Broken()
        del broken
    assert [item.exc_type for item in seen] == [ValueError]


def test_no_effect_in_another_thread():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def use() -> None:
        with Signals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [before]
