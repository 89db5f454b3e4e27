"""What a device and a model allow: the facts that the choice of compile properties rests on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ovgen.engine_config import EngineConfig
from ovgen.errors import ConfigError
from ovgen.model.compile_properties import load_properties
from ovgen.model.cpu import has_smt, num_cpus
from ovgen.model.graph_passes import has_integer_weights, weight_group
from ovgen.model.loader import (
    CORE,
    MODEL_NAME,
    VIRTUAL_DEVICES,
    check_device,
    read_ir,
)
from ovgen.model.profile import model_digest, this_machine
from ovgen.model.profile_file import Machine

_PRECISIONS = {"BF16": "bf16", "FP16": "f16"}  # a capability -> the precision that it is


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What can be chosen on a device, for one model.

    Attributes:
        device: its OpenVINO name.
        precisions: it computes in; float32 is the first.
        settable: names of the properties that it takes.
        kv_precision: of the KV cache where nobody chooses; None for a device that cannot say.
        num_cpus: logical processors.
        has_smt: whether several of them share a core.
        has_integer_weights: whether the model has any, to quantize activations for.
        weight_group: of them; None for whole rows.
        default: the properties of a load where nobody chooses.
    """

    device: str
    precisions: tuple[str, ...]
    settable: frozenset[str]
    kv_precision: str | None
    num_cpus: int
    has_smt: bool
    has_integer_weights: bool
    weight_group: int | None
    default: Mapping[str, str]


def device_facts(folder: Path, device: str) -> DeviceFacts:
    """Ask a device about itself, and a folder's graph about its weights.

    Raises:
        ConfigError: a virtual device, which leaves the choice to others.
        DeviceError, ModelFormatError: an unknown device, or a damaged graph.
    """
    if device.split(":")[0] in VIRTUAL_DEVICES:
        raise ConfigError(f"{device} stands for other devices; tune one of those, as CPU or GPU")
    check_device(CORE, device)
    model = read_ir(CORE, folder / MODEL_NAME)
    settable = CORE.get_property(device, "SUPPORTED_PROPERTIES")
    capabilities = CORE.get_property(device, "OPTIMIZATION_CAPABILITIES")
    kv_precision = None
    with suppress(RuntimeError, AttributeError):
        kv_precision = CORE.get_property(device, "KV_CACHE_PRECISION").get_type_name()
    return DeviceFacts(
        device=device,
        precisions=("f32", *(_PRECISIONS[name] for name in capabilities if name in _PRECISIONS)),
        settable=frozenset(name for name, access in settable.items() if access == "RW"),
        kv_precision=kv_precision,
        num_cpus=num_cpus(),
        has_smt=has_smt(),
        has_integer_weights=has_integer_weights(model),
        weight_group=weight_group(model),
        default=load_properties(CORE, EngineConfig(device=device), model),
    )


def identity(folder: Path, device: str) -> tuple[Machine, str]:
    """What a profile is valid for: the machine, and the digest of the model's files."""
    return this_machine(CORE, device), model_digest(folder)
