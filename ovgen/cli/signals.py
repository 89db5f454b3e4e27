"""Ctrl-C and its relatives, as an exception that lets every clean-up on its way run."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

# Where the user's fingers are faster than the clean-up, it is not to be cut short.
CLEAN_UP_SECONDS = 3.0
_REPEAT_SECONDS = 0.05
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Signals:
    """Turns SIGINT, SIGTERM and SIGHUP into one KeyboardInterrupt in the main thread.

    Signals that the parent process chose to ignore (``nohup``, ``&``) stay ignored.

    Attributes:
        received: the number of the signal that came, None before.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0
        self._before: dict[int, Any] = {}
        self._unraisable_hook = sys.unraisablehook

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = signal.signal(number, self._handle)
            self._unraisable_hook = sys.unraisablehook
            sys.unraisablehook = self._on_unraisable
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        sys.unraisablehook = self._unraisable_hook

    def ignore(self) -> None:
        """From here to the end of the block, let no signal interrupt."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is not None and now - self._received_at < CLEAN_UP_SECONDS:
            return
        self.received, self._received_at = number, now
        raise KeyboardInterrupt

    def _on_unraisable(self, unraisable: Any) -> None:
        """A destructor or a callback swallowed the exception: raise it again, a moment later."""
        if unraisable.exc_type is KeyboardInterrupt and self.received is not None:
            self._received_at = 0.0
            repeat = threading.Timer(_REPEAT_SECONDS, _signal_main_thread, (self.received,))
            repeat.daemon = True
            repeat.start()
        else:
            self._unraisable_hook(unraisable)


def _signal_main_thread(number: int) -> None:
    if hasattr(signal, "pthread_kill"):  # which ends a system call that blocks
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        _thread.interrupt_main(signal.Signals(number))
