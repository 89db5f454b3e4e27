"""The file of profiles beside a model: read, written, removed.

It is outside input: everything in it is checked, and a profile can set nothing but the properties
named here, to values that can do no harm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ovgen.engine_config import GOALS
from ovgen.errors import ModelFormatError
from ovgen.model.side_file import side_paths, write_side_file

PROFILE_NAME = "ovgen_profile.json"
VERSION = 1  # a file of another one is passed over
FIGURES = ("ttft", "tpot", "throughput", "kl", "ratio", "max_kl")

_MAX_SIZE = 1 << 18  # bytes
_MAX_PROFILES = 100  # of many machines that share a folder
_MAX_TEXT = 200  # characters in the name of a device


@dataclass(frozen=True, slots=True)
class Machine:
    """What a measurement depends on besides the model."""

    device: str
    device_name: str
    num_cpus: int
    openvino: str


@dataclass(frozen=True, slots=True)
class Profile:
    """The properties that are best for one goal, for one model on one machine.

    Attributes:
        goal: ``latency`` or ``throughput``.
        machine: where it was measured.
        model: digest of the model's files.
        properties: what is set, by OpenVINO's names.
        figures: what was measured with them: ``ttft`` and ``tpot`` in seconds, ``throughput`` in
            tokens/s, ``kl`` in nats and ``max_kl``, its bound; ``ratio`` is the time taken over
            that of the built-in rule.
    """

    goal: str
    machine: Machine
    model: str
    properties: Mapping[str, str]
    figures: Mapping[str, float]

    def misfit(self, machine: Machine, model: str) -> str | None:
        """Why this profile is not for a model on a machine; None where it is."""
        if self.model != model:
            return "measured on other model files"
        for name, mine in asdict(self.machine).items():
            other = getattr(machine, name)
            if mine != other:
                return f"measured with {name.replace('_', ' ')} {mine}, and here it is {other}"
        return None


def profile_paths(folder: Path) -> tuple[Path, Path]:
    """Where profiles are."""
    return side_paths(folder, PROFILE_NAME, "profiles")


def read_profiles(folder: Path) -> list[Profile]:
    """The profiles of a model, those tuned last at the end.

    Raises:
        ModelFormatError: a file is damaged.
    """
    return [profile for path in profile_paths(folder) for profile in _read(path)]


def store_profile(folder: Path, profile: Profile) -> Path:
    """Add a profile, in place of what it renews; gives the file that it is in.

    Raises:
        StorageError: it can be written neither beside the model nor in OVGEN_HOME.
    """
    try:
        kept = read_profiles(folder)
    except ModelFormatError:  # what is damaged is written anew
        kept = []
    kept = [one for one in kept if one.model == profile.model and _place(one) != _place(profile)]
    kept = [*kept, profile][-_MAX_PROFILES:]
    content = {"version": VERSION, "profiles": [asdict(one) for one in kept]}
    written = json.dumps(content, indent=2).encode()
    beside, at_home = paths = profile_paths(folder)
    path = write_side_file(paths, written)
    if path == beside:
        with suppress(OSError):
            at_home.unlink(missing_ok=True)
    return path


def remove_profiles(folder: Path) -> list[Path]:
    """Remove a model's profiles, whatever is in them; gives the files that there were.

    Raises:
        StorageError: one may not be removed.
    """
    from ovgen.hub.cache import storage_errors

    removed = []
    for path in profile_paths(folder):
        with storage_errors(f"remove {path}"), suppress(FileNotFoundError):
            path.unlink()
            removed.append(path)
    return removed


def _place(profile: Profile) -> tuple[object, ...]:
    """What only one profile of a model is kept of."""
    machine = profile.machine
    return profile.goal, machine.device, machine.device_name, machine.num_cpus


def _read(path: Path) -> list[Profile]:
    try:
        if not path.is_file():
            return []
        with path.open("rb") as file:
            content = file.read(_MAX_SIZE + 1)
        if len(content) > _MAX_SIZE:
            raise _Damage(f"is larger than {_MAX_SIZE} bytes")
        return _profiles(json.loads(content))
    except (OSError, ValueError, RecursionError) as exc:
        reason = exc if isinstance(exc, _Damage) else f"is not readable JSON: {exc}"
        raise ModelFormatError(
            f"{path} {reason}; `ovgen tune --reset {path.parent}` removes it, or use profile='none'"
        ) from exc


class _Damage(ValueError):
    """What is wrong with a file, to be said after its name."""


def _profiles(content: Any) -> list[Profile]:
    content = _object("the file", content, None)
    version = content.get("version")
    if isinstance(version, bool) or not isinstance(version, int):
        raise _Damage(f"has the version {version!r}; it must be a whole number")
    if version != VERSION:
        return []
    entries = content.get("profiles")
    if not isinstance(entries, list):
        raise _Damage("must hold a list of profiles")
    return [_profile(entry) for entry in entries]


def _profile(entry: Any) -> Profile:
    parts = _object("a profile", entry, ("goal", "machine", "model", "properties", "figures"))
    goal, model = parts["goal"], parts["model"]
    if goal not in GOALS:
        raise _Damage(f"has the goal {goal!r:.80}; it must be one of {', '.join(GOALS)}")
    machine = _object("machine", parts["machine"], tuple(Machine.__dataclass_fields__))
    names = (model, machine["device"], machine["device_name"], machine["openvino"])
    if not all(isinstance(name, str) and len(name) <= _MAX_TEXT for name in names):
        raise _Damage("has something other than a short string as the name of a machine or model")
    if not _is_whole(machine["num_cpus"]):
        raise _Damage(f"has num_cpus {machine['num_cpus']!r:.80}; it must be a whole number")
    properties = _object("properties", parts["properties"], None)
    for name, value in properties.items():
        if name not in PROPERTIES:
            raise _Damage(f"sets {name!r:.80}; a profile may set {', '.join(PROPERTIES)}")
        if not isinstance(value, str) or not PROPERTIES[name](value):
            raise _Damage(f"sets {name} to {value!r:.80}, which is none of its values")
    figures = _object("figures", parts["figures"], FIGURES)
    for name, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e12:
            raise _Damage(f"has the figure {name}={value!r:.80}; it must be a positive number")
    return Profile(goal, Machine(**machine), model, properties, figures)


def _object(what: str, value: Any, names: Sequence[str] | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Damage(f"is damaged: {what} must be an object, not {type(value).__name__}")
    if names is not None and set(value) != set(names):
        raise _Damage(f"is damaged: {what} must have {', '.join(names)}")
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 20


def _one_of(*values: str) -> Callable[[str], bool]:
    return lambda value: value in values


def _number(lowest: int, highest: int) -> Callable[[str], bool]:
    # In ASCII, as OpenVINO reads it.
    return lambda v: v.isascii() and v.isdigit() and len(v) < 9 and lowest <= int(v) <= highest


# What a profile may set: OpenVINO's name -> whether a value will do.
PROPERTIES: dict[str, Callable[[str], bool]] = {
    "INFERENCE_PRECISION_HINT": _one_of("f32", "bf16", "f16"),
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": _number(0, 128),
    "KV_CACHE_PRECISION": _one_of("u8", "f16", "bf16", "f32"),
    "INFERENCE_NUM_THREADS": _number(1, 4096),
    "ENABLE_HYPER_THREADING": _one_of("YES", "NO"),
    "ENABLE_CPU_PINNING": _one_of("YES", "NO"),
}
