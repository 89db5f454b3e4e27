"""``ovgen tune``: find the compile properties that are best on this machine, and keep them."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from ovgen.cli.arguments import Commands, add_command, add_weights
from ovgen.cli.files import read_text
from ovgen.cli.terminal import Output, progress_line, table
from ovgen.engine_config import GOALS
from ovgen.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ovgen.model.profile_file import Profile
    from ovgen.tuning.search import Trial

_HEADER = ("PROPERTIES", "TTFT", "TPOT", "TOKENS/S", "KL", "TIME")
# A figure, what to multiply it by, and how to write it.
_COLUMNS = (
    ("ttft", 1e3, "{:.1f} ms"),
    ("tpot", 1e3, "{:.2f} ms"),
    ("throughput", 1, "{:,.1f}"),
    ("kl", 1, "{:.4f}"),
    ("ratio", 1, "x {:.2f}"),
)
_NONE = "{} has no profile of this version of ovgen"
# Arguments that only a measurement takes; None where they were not given.
_FLAGS = {"goal": "--for", "max_kl": "--max-kl", "text": "--text", "rounds": "--rounds"}


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = add_command(
        commands,
        "tune",
        execute,
        help="measure a model's compile properties here, and have later loads use the best",
        example="ovgen tune smollm2-135m-instruct --for throughput",
    )
    parser.add_argument("model", metavar="MODEL", help="alias, IR folder, .gguf file or org/name")
    parser.add_argument(
        "--for",
        dest="goal",
        choices=GOALS,
        help="the time of one answer, or what many at once get (default: latency)",
    )
    parser.add_argument(
        "--max-kl",
        metavar="NATS",
        type=_positive_number,
        help="loss of accuracy allowed: mean KL divergence of the next token's distribution from "
        "float32's (default: 0.01)",
    )
    parser.add_argument(
        "--text", metavar="FILE", type=Path, help="what it is measured on (default: English prose)"
    )
    parser.add_argument(
        "--rounds", metavar="N", type=_positive, help="measurements of a candidate (default: 3)"
    )
    parser.add_argument("--device", default="CPU", help="OpenVINO device (default: %(default)s)")
    add_weights(parser)
    parser.add_argument("--offline", action="store_true", help="never reach for the network")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--show", action="store_true", help="only show what is stored")
    instead.add_argument("--reset", action="store_true", help="only remove what is stored")


def _positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return value


def execute(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if arguments.show or arguments.reset:
        for name, flag in _FLAGS.items():
            if getattr(arguments, name) is not None:
                other = "--show" if arguments.show else "--reset"
                arguments.parser.error(f"{flag} has no effect with {other}: leave one of them out")
    text = None if arguments.text is None else read_text("--text", arguments.text)
    from ovgen.model.resolve import resolve_folder

    with progress_line(f"exporting {arguments.model}") as show:
        folder = resolve_folder(
            arguments.model,
            weights=arguments.weights,
            offline=arguments.offline or None,
            progress=show,
        )
    if arguments.show:
        _show(folder, arguments.device)
    elif arguments.reset:
        _reset(folder)
    else:
        _tune(folder, text, arguments)


def _tune(folder: Path, text: str | None, arguments: argparse.Namespace) -> None:
    from ovgen.model.profile_file import store_profile
    from ovgen.tuning.tune import tune

    max_kl = arguments.max_kl or 0.01
    with progress_line(f"tuning {arguments.model}") as show:
        tuning = tune(
            folder,
            device=arguments.device,
            goal=arguments.goal or GOALS[0],
            max_kl=max_kl,
            text=text,
            rounds=arguments.rounds or 3,
            progress=show,
        )
    rows = [(*_HEADER, "VERDICT"), *map(_trial_row, tuning.trials)]
    Output().write(f"{table(rows, range(1, 6))}\n")
    if tuning.profile is None:
        nearest = min(trial.kl for trial in tuning.trials)
        raise ConfigError(
            f"no candidate is within --max-kl {max_kl:g}, the nearest has {nearest:.2g}: allow "
            "more, or load the model with precision='exact'"
        )
    path = store_profile(folder, tuning.profile)
    Output().write(f"stored in {path}\n")


def _trial_row(trial: Trial) -> tuple[str, ...]:
    from ovgen.tuning.candidates import label

    figures = trial.figures() if trial.samples else {"kl": trial.kl}
    return (label(trial.properties), *_figures(figures), trial.verdict)


def _figures(figures: Mapping[str, float]) -> list[str]:
    """Cells; what was not measured is a dash."""
    cells = []
    for name, scale, form in _COLUMNS:
        value = figures.get(name, math.inf) * scale
        cells.append(form.format(value) if math.isfinite(value) else "-")
    return cells


def _show(folder: Path, device: str) -> None:
    from ovgen.model.device_facts import identity
    from ovgen.model.profile_file import read_profiles
    from ovgen.tuning.candidates import label

    machine, model = identity(folder, device)
    profiles = read_profiles(folder)
    fitting = [profile for profile in profiles if profile.misfit(machine, model) is None]
    rows = []
    for profile in profiles:
        status = profile.misfit(machine, model)
        status = f"ignored: {status}" if status else _use(profile, fitting)
        rows.append((profile.goal, label(profile.properties), *_figures(profile.figures), status))
    shown = table([("FOR", *_HEADER, "STATUS"), *rows], range(2, 7))
    Output().write(f"{shown if rows else _NONE.format(folder)}\n")


def _use(profile: Profile, fitting: Sequence[Profile]) -> str:
    """When one of the profiles that fit is used: always the last, and the last of its goal."""
    if profile is fitting[-1]:
        return "used"
    if profile is [one for one in fitting if one.goal == profile.goal][-1]:
        return f"used with profile={profile.goal!r}"
    return "ignored: tuned again since"


def _reset(folder: Path) -> None:
    from ovgen.model.profile_file import remove_profiles

    removed = remove_profiles(folder)
    for path in removed:
        Output().write(f"removed {path}\n")
    if not removed:
        Output().write(f"{_NONE.format(folder)}\n")
