"""What ``ovgen export`` may be told about the weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovgen.cli.arguments import add_weights, key_value
from ovgen.export.compression import CompressionConfig


def add_weight_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights`` and what refines it."""
    group = parser.add_argument_group("weights")
    add_weights(group)
    group.add_argument(
        "--group-size",
        type=int,
        metavar="N",
        help="neighbours along a row that share a scale, -1 for a whole row "
        "(default: 64 in 8 bits, 32 in the last block and for "
        "queries, keys and values, 128 in 4 bits and for experts)",
    )
    group.add_argument(
        "--ratio",
        type=float,
        metavar="SHARE",
        help="share of the blocks' weights in 4 bits, the others stay in 8 (default: 1)",
    )
    group.add_argument(
        "--all-layers", action="store_true", help="4 bits for the embedding and the head too"
    )
    group.add_argument(
        "--override",
        action="append",
        default=[],
        type=key_value,
        metavar="PATTERN=MODE",
        help="another mode for some tensors, as '*.down_proj.weight=int8_sym'; the first that "
        "fits decides (may be repeated)",
    )
    group.add_argument(
        "--no-scale-search",
        dest="scale_search",
        action="store_false",
        help="4 bits: take the scales from the largest values",
    )
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="4 bits: a text to run through the model, so that the weights that matter in it are "
        "kept best",
    )
    group.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FOLDER[:SCALE]",
        help="fuse a LoRA adapter of PEFT into the weights (may be repeated)",
    )


def compression_config(arguments: argparse.Namespace) -> CompressionConfig:
    """The weights' part of the arguments, checked.

    Raises:
        ConfigError: a value that is not allowed, or an option without effect.
    """
    return CompressionConfig(
        mode=arguments.weights,
        group_size=arguments.group_size,
        ratio=arguments.ratio,
        all_layers=arguments.all_layers,
        overrides=tuple(arguments.override),
        scale_search=arguments.scale_search,
    )


def lora_adapters(arguments: argparse.Namespace) -> list[tuple[Path, float]]:
    """The adapters and their scales."""
    from ovgen.export.lora import parse_adapter

    return [parse_adapter(text) for text in arguments.lora]
