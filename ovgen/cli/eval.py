"""``ovgen eval``: how faithful a model's predictions are to those of another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovgen.cli.arguments import Commands, add_command, add_weights
from ovgen.cli.files import check_output, read_text, write_json
from ovgen.cli.terminal import Output, progress_line, table
from ovgen.engine_config import PRECISIONS
from ovgen.errors import ConfigError

if TYPE_CHECKING:
    from ovgen.evaluation.fidelity import Fidelity

REFERENCE_WEIGHTS = "exact"  # of a reference that is still to be exported
_MAX_PROMPTS = 100_000  # characters of their file


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = add_command(
        commands,
        "eval",
        execute,
        help="compare a model's predictions with a reference's, token by token",
        example="ovgen eval model-int4 --against org/model --text wiki.txt",
    )
    name = "alias, IR folder, .gguf file or org/name"
    parser.add_argument("model", metavar="MODEL", help=name)
    parser.add_argument(
        "--against",
        metavar="REFERENCE",
        required=True,
        help=f"{name}; computed in float32, and exported with its own values",
    )
    parser.add_argument(
        "--text", metavar="FILE", type=Path, help="what to predict (default: English prose)"
    )
    parser.add_argument(
        "--max-tokens",
        metavar="N",
        type=int,
        default=4096,
        help="of the text that are read (default: %(default)s)",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help="that both go on with, one a line (default: five of them)",
    )
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=int,
        default=64,
        help="that each prompt is gone on with (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="the model's: as it usually runs, or exact for its weights alone "
        "(default: %(default)s)",
    )
    parser.add_argument("--device", default="CPU", help="OpenVINO device (default: %(default)s)")
    add_weights(parser)
    parser.add_argument("--offline", action="store_true", help="never reach for the network")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures as JSON")


def execute(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if arguments.json is not None:
        check_output(arguments.json)
    prompts = _prompts(arguments.prompts)
    text = _text(arguments)
    model = _folder(arguments.model, arguments.weights, arguments.offline)
    against = _folder(arguments.against, None, arguments.offline)

    from ovgen.evaluation.evaluate import evaluate

    with progress_line(f"evaluating {arguments.model}") as show:
        found = evaluate(
            model,
            against,
            text=text,
            prompts=prompts,
            device=arguments.device,
            precision=arguments.precision,
            max_tokens=arguments.max_tokens,
            max_new_tokens=arguments.max_new_tokens,
            progress=show,
        )
    settings = {
        "model": arguments.model,
        "reference": arguments.against,
        "text": None if arguments.text is None else str(arguments.text),
        "device": arguments.device,
        "precision": arguments.precision,
        "weights": arguments.weights,
    }
    Output().write(_report(settings, found))
    if arguments.json is not None:
        import ovgen

        write_json(arguments.json, {"ovgen": ovgen.__version__, **settings, **found.to_json()})


def _prompts(path: Path | None) -> list[str]:
    if path is None:
        from ovgen.evaluation.prompts import PROMPTS

        return list(PROMPTS)
    text = read_text("--prompts", path, _MAX_PROMPTS + 1)
    prompts = [line for line in text.splitlines() if line.strip()]
    if not prompts or len(text) > _MAX_PROMPTS:
        raise ConfigError(
            f"--prompts {path} must hold one prompt a line, and {_MAX_PROMPTS:,} characters at most"
        )
    return prompts


def _text(arguments: argparse.Namespace) -> str:
    if arguments.text is None:
        from ovgen.evaluation.passage import PASSAGE

        return PASSAGE
    from ovgen.evaluation.evaluate import CHARACTERS_A_TOKEN, MAX_TOKENS

    return read_text("--text", arguments.text, CHARACTERS_A_TOKEN * MAX_TOKENS)


def _folder(model: str, weights: str | None, offline: bool) -> Path:
    """Have a model's IR here; None for weights: the source's own values."""
    from ovgen.hub.resolve import resolve_model
    from ovgen.model.resolve import resolve_folder

    if weights is None:
        kind = resolve_model(model, offline=offline or None).kind
        weights = "auto" if kind == "ir" else REFERENCE_WEIGHTS
    with progress_line(f"exporting {model}") as show:
        return resolve_folder(model, weights=weights, offline=offline or None, progress=show)


def _report(settings: dict[str, Any], found: Fidelity) -> str:
    text = settings["text"] or "English prose"
    header = [
        ("model", f"{settings['model']}, precision {settings['precision']}"),
        ("reference", f"{settings['reference']}, precision exact"),
        ("device", settings["device"]),
        ("text", f"{text}, {found.num_tokens:,} tokens predicted"),
    ]
    parts = [table(header, ()), table(found.figures(), {1})]
    if prompts := found.prompts():
        parts.append(table(prompts, {1, 2}))
    return "\n\n".join(parts) + "\n"
