"""What `ovgen tune` found best for a model on this machine, as properties of a load."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import openvino as ov

from ovgen.engine_config import EngineConfig
from ovgen.errors import ConfigError, ModelNotFoundError
from ovgen.model.cpu import num_cpus
from ovgen.model.profile_file import Machine, read_profiles

_NUM_SAMPLES, _SAMPLE_SIZE = 16, 4096  # of the weights, to tell them from others of their shape
_XML, _BIN = "openvino_model.xml", "openvino_model.bin"


def this_machine(core: ov.Core, device: str) -> Machine:
    """The identity of a device here; a virtual one has no name."""
    name = ""
    with suppress(RuntimeError):
        name = str(core.get_property(device, "FULL_DEVICE_NAME"))
    return Machine(device, name, num_cpus(), ov.get_version())


def model_digest(folder: Path) -> str:
    """What tells a model's files from others: the graph, and samples of the weights.

    Unlike times of modification it stays the same in a copy.

    Raises:
        ModelNotFoundError: they are gone.
    """
    try:
        digest = hashlib.sha256((folder / _XML).read_bytes())
        with (folder / _BIN).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(str(size).encode())
            for number in range(_NUM_SAMPLES):
                file.seek(max(0, size - _SAMPLE_SIZE) * number // (_NUM_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_SIZE))
    except OSError as exc:
        raise ModelNotFoundError(f"{folder} cannot be read any more: {exc}") from exc
    return digest.hexdigest()


def with_profile(core: ov.Core, folder: Path, config: EngineConfig) -> EngineConfig:
    """The config with the properties of the profile that it asks for; its own ones win.

    Raises:
        ConfigError: it asks for a goal that nothing fitting was measured for.
        ModelFormatError: the profile's file is damaged.
    """
    if config.profile == "none" or config.precision == "exact":
        return config
    profiles = read_profiles(folder)
    if config.profile != "auto":
        profiles = [one for one in profiles if one.goal == config.profile]
    if profiles:
        machine, model = this_machine(core, config.device), model_digest(folder)
        profiles = [one for one in profiles if one.misfit(machine, model) is None]
    if not profiles:
        if config.profile == "auto":
            return config
        raise ConfigError(
            f"profile={config.profile!r}, but {folder} has none that fits this machine: "
            f"make it with `ovgen tune --for {config.profile} {folder}`, or use profile='auto'"
        )
    properties = dict(profiles[-1].properties)  # of the goal tuned last
    if "INFERENCE_PRECISION_HINT" in config.properties:
        # Measured together with the profile's own precision, and meant for no other.
        properties.pop("DYNAMIC_QUANTIZATION_GROUP_SIZE", None)
    return replace(config, properties={**properties, **config.properties})
