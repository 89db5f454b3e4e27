"""``ovgen list``: the models that have a short name."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from ovgen.cli.arguments import Commands, add_command
from ovgen.cli.terminal import Output, table

if TYPE_CHECKING:
    from ovgen.hub.catalog import CatalogEntry

_HEADER = ("ALIAS", "SIZE", "LICENCE", "CONTEXT", "CACHED", "TITLE")
_RIGHT_ALIGNED = (1, 3)


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = add_command(
        commands,
        "list",
        execute,
        help="show the models that have a short name",
        example="ovgen list",
    )
    parser.add_argument("--json", action="store_true", help="a JSON list in place of the table")


def execute(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from ovgen.hub.catalog import load_catalog
    from ovgen.hub.resolve import is_cached

    catalog = load_catalog()
    listed = [(entry, is_cached(entry)) for entry in catalog.values()]
    if arguments.json:
        text = json.dumps(
            [
                {**_to_json(entry, cached), "default": entry.alias == catalog.default}
                for entry, cached in listed
            ],
            indent=2,
            ensure_ascii=False,
        )
    else:
        rows = [_row(entry, cached) for entry, cached in listed]
        text = table([_HEADER, *rows], _RIGHT_ALIGNED)
    Output().write(f"{text}\n")


def _to_json(entry: CatalogEntry, cached: bool) -> dict[str, Any]:
    return {
        "alias": entry.alias,
        "title": entry.title,
        "architecture": entry.architecture,
        "size": entry.size,
        "license": entry.license,
        "context_length": entry.context_length,
        "sources": [str(source) for source in entry.sources],
        "cached": cached,
    }


def _row(entry: CatalogEntry, cached: bool) -> tuple[str, ...]:
    size = "-" if entry.size is None else f"{entry.size / 1e6:.0f} MB"
    context = str(entry.context_length)
    return (entry.alias, size, entry.license, context, "yes" if cached else "-", entry.title)
