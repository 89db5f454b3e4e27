"""What the commands write: text to stdout, and to stderr lines for people to read."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from ovgen.errors import StorageError

_C0 = (code for code in range(0x20) if chr(code) not in "\n\t")
_CONTROLS = dict.fromkeys([*_C0, *range(0x7F, 0xA0)])


def without_controls(text: str) -> str:
    """``text`` without the control characters that a terminal acts on, but for newline and tab."""
    return text.translate(_CONTROLS)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether someone sits at the other end; a closed stream is None or raises ValueError."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


class Output:
    """Stdout, written through at once, in UTF-8 whatever the locale.

    A terminal gets no control characters: a model could make it do anything. Elsewhere the text
    goes unchanged.
    """

    def __init__(self) -> None:
        self._stream = sys.stdout
        self._is_terminal = is_terminal(sys.stdout)
        self._line_begun = False

    def write(self, text: str) -> None:
        """Write text; BrokenPipeError when its reader has gone, StorageError for a full disk."""
        if self._is_terminal:
            text = without_controls(text)
        if text and self._stream is not None:
            self._line_begun = not text.endswith("\n")
            try:
                self._stream.write(text)
                self._stream.flush()
            except BrokenPipeError:
                raise
            except OSError as exc:
                raise StorageError(f"cannot write to stdout: {exc.strerror or exc}") from exc

    def end_line(self) -> None:
        """Write a newline where a line was begun."""
        if self._line_begun:
            self.write("\n")


def set_encodings() -> None:
    """Have stdout take any text, whatever the locale says; a closed stream takes it to nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # argparse before Python 3.11 writes to them all the same
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", errors="replace")


def print_lines(text: str) -> None:
    """Write lines to stderr, as far as there is one."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(without_controls(text) + "\n")
        sys.stderr.flush()


def print_error(message: str) -> None:
    """Write one line to stderr, as far as there is one."""
    line = without_controls(" ".join(message.split()))
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"ovgen: {line}\n")
        sys.stderr.flush()


def table(rows: Sequence[Sequence[str]], right_aligned: Collection[int]) -> str:
    """Rows in columns that are as wide as they need, some of them (by number) flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        [
            cell.rjust(width) if index in right_aligned else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


@contextmanager
def progress_line(title: str) -> Iterator[Callable[[str], None]]:
    """A function that shows what is being done, in one line of stderr that goes away at the end.

    Shows nothing where stderr is no terminal.
    """
    width = 0

    def show(stage: str) -> None:
        nonlocal width
        if not is_terminal(sys.stderr):
            return
        columns = shutil.get_terminal_size().columns
        line = without_controls(f"{title}: {stage} ...")[: columns - 1]
        sys.stderr.write("\r" + line.ljust(width))
        sys.stderr.flush()
        width = max(width, len(line))

    try:
        yield show
    finally:
        if width:
            sys.stderr.write("\r" + " " * width + "\r")
            sys.stderr.flush()
