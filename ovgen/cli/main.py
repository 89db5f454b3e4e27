"""The ``ovgen`` command: its arguments, and what becomes of errors and signals.

Nothing heavy is imported before a command needs it: ``--help`` and mistakes answer at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from ovgen.cli.signals import Signals
from ovgen.cli.terminal import print_error, set_encodings
from ovgen.errors import OvgenError

if TYPE_CHECKING:
    import argparse
    from types import ModuleType

EXIT_OK, EXIT_ERROR, EXIT_BROKEN_PIPE = 0, 1, 128 + 13  # as if SIGPIPE had ended us
TRACEBACK_VARIABLE = "OVGEN_TRACEBACK"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code.

    0; 1 for an error (one line on stderr); 2 for wrong usage; 128 and the signal's number for
    Ctrl-C (130) and SIGTERM. Without ``argv`` this is the program itself: the process ends here.
    """
    with Signals() as signals:
        try:
            if argv is None:
                _leave_out_the_converter()
                _keep_numpy_to_one_thread()
            code = _run(argv)
        except BaseException as exc:
            signals.ignore()
            code = _explain(exc, signals.received)
            if os.environ.get(TRACEBACK_VARIABLE):
                raise
        signals.ignore()
        if argv is None:
            _leave(code)
        return code


def _leave_out_the_converter() -> None:
    """Have `import openvino` do without its model converter, as it does where that is missing.

    The converter takes 0.1 s to import, and sends a usage event over the network. Only a process
    of our own may be spared it.
    """
    sys.modules.setdefault("openvino.tools.ovc", cast("ModuleType", None))


def _keep_numpy_to_one_thread() -> None:
    """Have numpy's matrix products, which no command has many of, start no threads: idle ones
    spin, which costs a start 3%."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _run(argv: Sequence[str] | None) -> int:
    set_encodings()
    try:
        arguments = _parse(argv)
        arguments.execute(arguments)
    except SystemExit as exc:  # argparse has written its message
        if sys.stdout is not None:
            sys.stdout.flush()
        return exc.code if isinstance(exc.code, int) else EXIT_OK
    return EXIT_OK


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; an optional one, such as run's PROMPT, may follow options.

    argparse itself takes it for absent where an option stands between it and the one before.
    """
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(arguments, "prompt", None) == "-":
        arguments.prompt = rest.pop()
    if rest:
        arguments.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; what it gives has ``execute(arguments)``."""
    import argparse  # here, as the commands below: Ctrl-C is provided for by now

    import ovgen
    from ovgen.cli import bench, eval, export, list, pull, run, tune

    parser = argparse.ArgumentParser(
        prog="ovgen",
        description="Run language models on OpenVINO.",
        epilog='example: ovgen run smollm2-135m-instruct "What is the capital of France?"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ovgen {ovgen.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (run, pull, list, export, eval, bench, tune):
        command.add_parser(commands)
    return parser


def _explain(exc: BaseException, signal_number: int | None) -> int:
    """Say in one line what happened, and give the exit code for it."""
    if signal_number is not None or isinstance(exc, KeyboardInterrupt):
        # Whatever it is: libraries turn an interrupted import into errors of their own.
        return 128 + (signal_number or signal.SIGINT)
    if isinstance(exc, BrokenPipeError):
        return EXIT_BROKEN_PIPE
    print_error(_message(exc))
    return EXIT_ERROR


def _message(exc: BaseException) -> str:
    if isinstance(exc, OvgenError):
        return str(exc)
    if isinstance(exc, MemoryError):
        return "out of memory; take a smaller model, or close other programs"
    if isinstance(exc, OSError):
        return str(exc)
    return (
        f"unexpected {type(exc).__name__}: {exc} "
        f"(a mistake in ovgen: please report it with what {TRACEBACK_VARIABLE}=1 shows)"
    )


def _leave(code: int) -> None:
    """End the process without freeing a model piece by piece, which would take 0.1 s and more."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
