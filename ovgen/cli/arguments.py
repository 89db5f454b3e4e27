"""What the commands' arguments have in common."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, TypeAlias

from ovgen.export.compression import MODES

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


def add_command(
    commands: Commands,
    name: str,
    execute: Callable[[argparse.Namespace], None],
    *,
    help: str,
    example: str,
) -> argparse.ArgumentParser:
    """A parser whose namespace has ``execute`` and, for errors of usage, ``parser``."""
    parser = commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(execute=execute, parser=parser)
    return parser


def add_weights(container: argparse._ActionsContainer) -> None:
    """Add ``--weights``."""
    container.add_argument(
        "--weights",
        choices=MODES,
        metavar="MODE",
        default="auto",
        help=f"how weights are stored (default: %(default)s): {', '.join(MODES)}",
    )


def key_value(text: str) -> tuple[str, str]:
    """Split ``KEY=VALUE``."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    return key, value


def key_json(text: str) -> tuple[str, Any]:
    """Split ``KEY=JSON`` and read the value."""
    key, value = key_value(text)
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        if value in _PYTHON_WORDS:
            hint = f"write {key}={_PYTHON_WORDS[value]}"
        else:
            hint = f"text goes in double quotes: {key}='\"text\"'"
        raise argparse.ArgumentTypeError(f"{value!r:.80} is not JSON; {hint}") from None
