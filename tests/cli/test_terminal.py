"""What reaches a terminal, and what reaches a pipe."""

from __future__ import annotations

import io
import sys

import pytest

from ovgen.cli.terminal import Output, is_terminal, print_error, progress_line, without_controls


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


NASTY = "a\x1b[2Jb\rc\x07d\x9b1me\x7ff\x00g\thé👍\n"


def test_a_terminal_gets_no_control_characters(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    Output().write(NASTY)
    assert sys.stdout.getvalue() == "a[2Jbcd1mefg\thé👍\n"


def test_a_pipe_gets_everything(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    Output().write(NASTY)
    assert sys.stdout.getvalue() == NASTY


def test_all_controls_but_newline_and_tab_go():
    kept = [code for code in range(0x110000) if without_controls(chr(code))]
    gone = sorted(set(range(0x110000)) - set(kept))
    expected = [*range(9), *range(11, 32), *range(127, 160)]
    assert gone == expected


def test_a_line_is_ended_once(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    output = Output()
    output.end_line()
    output.write("a")
    output.write("")
    output.end_line()
    output.end_line()
    assert sys.stdout.getvalue() == "a\n"


def test_errors_are_one_line(capsys):
    print_error("two\nlines \t and\x1b a \u2028tail\n")
    assert capsys.readouterr().err == "ovgen: two lines and a tail\n"


def test_progress_is_shown_and_goes_away(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_line("exporting tiny") as show:
        show("a long stage")
        show("short")
        show("x" * 100)
    shown = sys.stderr.getvalue()
    assert shown.startswith("\rexporting tiny: a long stage ...\rexporting tiny: short ...       ")
    assert shown.endswith("\r" + " " * 39 + "\r")
    assert "\n" not in shown


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_no_progress_elsewhere(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_line("exporting") as show:
        show("stage")
    assert stream is None or stream.getvalue() == ""


def test_a_closed_stream_is_no_terminal():
    assert is_terminal(Terminal())
    closed = io.StringIO()
    closed.close()
    assert not is_terminal(closed)
