"""``ovgen export``: a GGUF file to an IR folder of the user's choice."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovgen.cli.arguments import Commands, add_command, add_weights
from ovgen.cli.terminal import Output, progress_line
from ovgen.errors import ConfigError


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = add_command(
        commands,
        "export",
        execute,
        help="write a GGUF model as an OpenVINO IR folder, and print the folder",
        example="ovgen export model.gguf model-ov --weights int8",
    )
    parser.add_argument(
        "source", metavar="SOURCE", help=".gguf file, or an alias or org/name that is one"
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="must not exist, or be empty")
    add_weights(parser)
    parser.add_argument("--offline", action="store_true", help="never reach for the network")


def execute(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from ovgen.hub.resolve import resolve_model

    resolved = resolve_model(arguments.source, offline=arguments.offline or None)
    if resolved.kind == "ir":
        raise ConfigError(
            f"{arguments.source} is exported already, there is nothing to do: "
            f"its folder is {resolved.path}"
        )
    from ovgen.export.exporter import export_gguf

    with progress_line(f"exporting {resolved.name}") as show:
        folder = export_gguf(
            resolved.path, arguments.folder, weights=arguments.weights, progress=show
        )
    Output().write(f"{folder}\n")
