"""``ovgen bench``: how fast a model is here, and beside other engines on the same weights."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ovgen.cli.arguments import Commands, add_command, add_weights
from ovgen.cli.files import check_output, write_json
from ovgen.cli.terminal import Output, progress_line, table
from ovgen.errors import ConfigError

if TYPE_CHECKING:
    from ovgen.bench.engines import Engine
    from ovgen.bench.report import Report
    from ovgen.bench.session import Options

# As in ovgen.bench.workloads and ovgen.bench.engines, which would be imported for any --help.
WORKLOADS = ("latency", "throughput", "prefix", "start", "memory")
PEERS = ("genai", "llama.cpp", "optimum")


def add_parser(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = add_command(
        commands,
        "bench",
        execute,
        help="measure a model, and other engines on the same weights beside it",
        example="ovgen bench smollm2-135m-instruct --against genai,llama.cpp=/env/bin/python",
    )
    parser.add_argument("model", metavar="MODEL", help="alias, IR folder, .gguf file or org/name")
    parser.add_argument(
        "--only",
        metavar="LIST",
        type=_workloads,
        default=WORKLOADS,
        help=f"workloads out of {','.join(WORKLOADS)} (default: all)",
    )
    parser.add_argument("--rounds", type=_positive, default=5, help="(default: %(default)s)")
    parser.add_argument("--device", default="CPU", help="OpenVINO device (default: %(default)s)")
    add_weights(parser)
    parser.add_argument("--offline", action="store_true", help="never reach for the network")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_positive,
        default=1800,
        help="for each answer of an engine (default: %(default)s)",
    )
    _add_peer_options(parser.add_argument_group("peers"))
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", type=Path, help="write all rounds as JSON")
    output.add_argument("--plot", metavar="FILE.png", type=_png, help="write a picture")


def _add_peer_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--against",
        metavar="LIST",
        type=_peers,
        default={},
        help=f"engines out of {','.join(PEERS)}, each as NAME, or as NAME=PYTHON where another "
        "interpreter has it installed",
    )
    group.add_argument(
        "--peer-properties",
        choices=("default", "same"),
        default="default",
        help="OpenVINO properties of genai and optimum: their own or ovgen's "
        "(default: %(default)s)",
    )


def _workloads(text: str) -> tuple[str, ...]:
    names = text.split(",")
    for name in names:
        if name not in WORKLOADS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is no workload; there are {', '.join(WORKLOADS)}"
            )
    return tuple(name for name in WORKLOADS if name in names)


def _peers(text: str) -> dict[str, str | None]:
    peers: dict[str, str | None] = {}
    for item in text.split(","):
        name, equals, python = item.partition("=")
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"{name!r} is no peer; there are {', '.join(PEERS)}")
        if name in peers or (equals and not python):
            raise argparse.ArgumentTypeError(f"give {name} once, as {name} or {name}=PYTHON")
        peers[name] = python or None
    return peers


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _png(text: str) -> Path:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end with .png")
    return Path(text)


def execute(arguments: argparse.Namespace) -> None:
    """Run the command."""
    _check_outputs(arguments)
    engines = _find_engines(arguments)
    options = _options(arguments, engines)
    if arguments.peer_properties == "same":
        engines = [engines[0], *(_with_own_properties(one, options) for one in engines[1:])]
    report = _measure(arguments, engines, options)
    rows = report.rows()
    parts = (
        table(report.header(), ()),
        table(rows, range(2, len(rows[0]))),
        "\n".join(report.notes()),
    )
    Output().write("\n\n".join(parts) + "\n")
    if arguments.json is not None:
        write_json(arguments.json, report.to_json())
    if arguments.plot is not None:
        from ovgen.bench.plot import write_plot

        names = [engine.name for engine in engines]
        write_plot(arguments.plot, report.samples, names, f"ovgen bench {arguments.model}")


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse what could not be written, before the time is spent."""
    for path in filter(None, (arguments.json, arguments.plot)):
        check_output(path)
    if arguments.plot is not None:
        from ovgen.bench.plot import require_matplotlib

        require_matplotlib()


def _find_engines(arguments: argparse.Namespace) -> list[Engine]:
    from ovgen.bench import engines

    kinds = [engines.PEERS[name] for name in arguments.against]
    if arguments.peer_properties == "same" and not any(kind.is_openvino for kind in kinds):
        raise ConfigError(
            "peer-properties='same' has no effect without genai or optimum in --against"
        )
    if arguments.device != "CPU" and not all(kind.is_openvino for kind in kinds):
        raise ConfigError(f"llama.cpp runs on the CPU here: it cannot use {arguments.device}")
    peers = (engines.find_peer(name, python) for name, python in arguments.against.items())
    return [engines.find_own(), *peers]


def _with_own_properties(peer: Engine, options: Options) -> Engine:
    if not peer.kind.is_openvino:
        return peer
    from ovgen.model.device_facts import device_facts

    return replace(peer, properties=device_facts(options.folder, options.device).default)


def _options(arguments: argparse.Namespace, engines: list[Engine]) -> Options:
    """Have the model's files here, and say what is to be measured."""
    from ovgen.bench.session import Options
    from ovgen.hub.cache import home_folder
    from ovgen.hub.resolve import resolve_model
    from ovgen.model.resolve import resolve_folder

    offline = arguments.offline or None
    with progress_line(f"exporting {arguments.model}") as show:
        folder = resolve_folder(
            arguments.model, weights=arguments.weights, offline=offline, progress=show
        )
    resolved = resolve_model(arguments.model, offline=offline)
    if resolved.kind != "gguf" and any(not engine.kind.is_openvino for engine in engines):
        raise ConfigError(
            f"llama.cpp needs a GGUF file, and {arguments.model} is an IR; "
            "leave it out of --against, or give the .gguf file as MODEL"
        )
    return Options(
        folder=folder.absolute(),
        gguf=resolved.path.absolute() if resolved.kind == "gguf" else None,
        device=arguments.device,
        workloads=arguments.only,
        rounds=arguments.rounds,
        timeout=arguments.timeout,
        home=home_folder(),
    )


def _measure(arguments: argparse.Namespace, engines: list[Engine], options: Options) -> Report:
    from ovgen.bench.machine import machine
    from ovgen.bench.report import Report
    from ovgen.bench.session import Session

    here = machine()  # before it is busy with this
    with progress_line("bench") as show:
        session = Session(engines, options, show)
        samples = session.run()
    settings = {
        "workloads": list(options.workloads),
        "rounds": options.rounds,
        "device": options.device,
        "weights": arguments.weights,
        "peer_properties": arguments.peer_properties,
    }
    return Report(arguments.model, settings, here, engines, samples, session.facts)
