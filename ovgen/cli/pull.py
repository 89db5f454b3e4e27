"""``ovgen pull``: get a model ready, so that it starts at once and without a network."""

from __future__ import annotations

import argparse

from ovgen.cli.arguments import Commands, add_command, add_weights
from ovgen.cli.terminal import Output, progress_line
from ovgen.errors import ConfigError


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = add_command(
        commands,
        "pull",
        execute,
        help="download a model, export it if it is no IR yet, and print its folder",
        example="ovgen pull smollm2-135m-instruct",
    )
    parser.add_argument("model", metavar="MODEL", help="alias, .gguf file, folder or org/name")
    add_weights(parser)


def execute(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from ovgen.hub.resolve import pull

    resolved = pull(arguments.model)
    folder = resolved.path
    if resolved.kind != "ir":
        from ovgen.model.resolve import exported_folder

        with progress_line(f"exporting {resolved.name}") as show:
            folder = exported_folder(resolved.path, arguments.weights, progress=show)
    elif arguments.weights != "auto":
        raise ConfigError(
            f"weights={arguments.weights!r} has no effect on {arguments.model}: "
            "it is exported already"
        )
    Output().write(f"{folder}\n")
