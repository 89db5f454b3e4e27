"""``ovgen export``: a checkpoint to an IR folder of the user's choice."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovgen.cli.arguments import Commands, add_command
from ovgen.cli.terminal import Output, print_lines, progress_line
from ovgen.cli.weight_options import add_weight_options, compression_config, lora_adapters
from ovgen.errors import ConfigError


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = add_command(
        commands,
        "export",
        execute,
        help="write a model as an OpenVINO IR folder, and print the folder",
        example="ovgen export model.gguf model-ov --weights int4_sym --ratio 0.8",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help=".gguf file, folder of transformers or of an IR, or an alias or org/name that is one",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="must not exist, or be empty")
    add_weight_options(parser)
    parser.add_argument("--offline", action="store_true", help="never reach for the network")


def execute(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from ovgen.hub.resolve import resolve_model

    weights = compression_config(arguments)
    resolved = resolve_model(arguments.source, offline=arguments.offline or None)
    from ovgen.export.compression_report import CompressionReport
    from ovgen.export.exporter import export_model
    from ovgen.export.recompress import recompress_model

    reports: list[CompressionReport] = []
    adapters = lora_adapters(arguments)
    if resolved.kind == "ir" and (adapters or arguments.calibration):
        raise ConfigError(
            f"{arguments.source} is exported already; adapters and a calibration text go with a "
            "checkpoint"
        )
    with progress_line(f"exporting {resolved.name}") as show:
        if resolved.kind == "ir":
            folder = recompress_model(
                resolved.path,
                arguments.folder,
                weights=weights,
                progress=show,
                on_report=reports.append,
            )
        else:
            folder = export_model(
                resolved.path,
                arguments.folder,
                weights=weights,
                adapters=adapters,
                calibration=arguments.calibration,
                progress=show,
                on_report=reports.append,
            )
    for report in reports:
        print_lines(report.to_text())
    Output().write(f"{folder}\n")
