"""From an IR folder to a compiled model: read, change, compile, cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from ovgen.engine_config import EngineConfig
from ovgen.errors import DeviceError, ModelFormatError, ModelNotFoundError
from ovgen.generation_file import read_json
from ovgen.model.compile_properties import (
    KV_CACHE,
    has_own_head,
    head_properties,
    is_plain_x86,
    load_properties,
    refuse_contradictions,
    with_kv_precision,
)
from ovgen.model.compiled_cache import CompiledCache
from ovgen.model.device_errors import first_line
from ovgen.model.fusion import fuse_projections
from ovgen.model.mapped_weights import MappedWeights
from ovgen.model.profile import with_profile
from ovgen.model.sampled_tokens import gather_sampled_tokens
from ovgen.model.split_head import split_head

MODEL_NAME = "openvino_model.xml"

# One core, kept for good: it holds no settings of ours. The CPU plugin gives the thread that loads
# it a stack for signal handlers. Where a plugin is unloaded while a later one's is in use, that
# one's end puts the freed stack back, and the next signal, such as Ctrl-C, crashes the process
# (OpenVINO 2026.4).
CORE = ov.Core()

# Where the many families keep the length of their context in config.json.
_CONTEXT_KEYS = (
    "max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length",
    "n_ctx",
)  # fmt: skip
_UNBOUNDED_CONTEXT = 1 << 20  # for a family without positions, such as Mamba

VIRTUAL_DEVICES = ("AUTO", "MULTI", "HETERO", "BATCH")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A compiled model and what its config says of it.

    Attributes:
        compiled: the model, or its body, whose output are hidden states.
        head: makes logits of them; None where ``compiled`` does so itself.
        weights: the mappings of the file's weights, or of those from the cache; they must outlive
            the models.
        context_length: most tokens of a sequence.
        vocab_size: of the logits.
    """

    compiled: ov.CompiledModel
    head: ov.CompiledModel | None
    weights: tuple[MappedWeights, ...]
    context_length: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Source:
    """What a model is loaded from.

    Attributes:
        xml: the IR's graph.
        config: of the engine, with the properties of the model's profile.
        context_length: most tokens of a sequence.
    """

    xml: Path
    config: EngineConfig
    context_length: int

    @classmethod
    def of(cls, folder: Path, config: EngineConfig) -> Source:
        """A folder, looked at before anything is read.

        Raises:
            ModelNotFoundError, ModelFormatError: the folder's files.
            DeviceError: an unknown device.
            ConfigError: properties that contradict ``precision="exact"``, or a profile that is not
                there.
        """
        xml = folder / MODEL_NAME
        for path in (xml, xml.with_suffix(".bin")):
            if not path.is_file():
                raise ModelNotFoundError(
                    f"{path} does not exist; an IR folder has {MODEL_NAME}/.bin"
                )
        context_length = _context_length(folder)
        check_device(CORE, config.device)
        refuse_contradictions(config)
        return cls(xml, with_profile(CORE, folder, with_kv_precision(config)), context_length)

    def vocab_size(self, model: ov.Model | ov.CompiledModel) -> int:
        """The last axis of a model's logits."""
        vocab = model.output(0).get_partial_shape()[-1]
        if vocab.is_dynamic:
            raise ModelFormatError(
                f"{self.xml}: the size of the vocabulary is not known from the graph"
            )
        return int(vocab.get_length())


def load_model(folder: Path, config: EngineConfig, cache: CompiledCache | None) -> LoadedModel:
    """Compile the IR of a folder, or take it from the cache of compiled models.

    Args:
        folder: with the IR.
        config: of the engine.
        cache: of compiled models.

    Raises:
        ModelNotFoundError, ModelFormatError: the folder's files.
        DeviceError: an unknown device, or properties that it refuses.
        ConfigError: properties that contradict ``precision="exact"``, or a profile that is not
            there.
    """
    source = Source.of(folder, config)
    if "CACHE_DIR" in source.config.properties:
        cache = None  # the caller's own way to keep compiled models, or none at all
    cached = cache.load(CORE, source.xml, source.config) if cache else None
    if cached:
        parts = [part.compiled for part in cached]
        weights = tuple(part.blob for part in cached)
    else:
        weights = (map_weights(source),)
        with weights[0].dropping_pages():
            parts = _compiled_parts(source, weights[0], cache)
    body, head = parts if len(parts) == 2 else (parts[0], None)
    return LoadedModel(body, head, weights, source.context_length, source.vocab_size(parts[-1]))


def _compiled_parts(
    source: Source, weights: MappedWeights, cache: CompiledCache | None
) -> list[ov.CompiledModel]:
    """The model; or its body and its head, where its logits would come in bfloat16 else."""
    model = read_ir(CORE, source.xml, weights)
    prepare(model, source.config)
    gather_sampled_tokens(model)
    properties = load_properties(CORE, source.config, model)
    wanted = [(model, properties)]
    if has_own_head(source.config, properties):
        # In 8 bits all values of a head's key would share a scale here, which costs more than the
        # memory of one sequence is worth: gemma-3's mean KL is 0.0047 so, and 0.0025 with this.
        properties.setdefault(KV_CACHE, "f16")
        head = split_head(model)
        if head is not None:
            wanted.append((head, head_properties(source.config, properties, head)))
    compiled = [compile_graph(source, part, own) for part, own in wanted]
    if cache:
        cache.store(CORE, compiled, source.xml, source.config, [own for _, own in wanted])
    return compiled


def map_weights(source: Source) -> MappedWeights:
    """The weights of an IR.

    Raises:
        ModelFormatError: their file cannot be read.
    """
    path = source.xml.with_suffix(".bin")
    try:
        return MappedWeights(path)
    except OSError as exc:
        raise ModelFormatError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def prepare(model: ov.Model, config: EngineConfig) -> None:
    """The changes to a graph that pay on any path."""
    if is_plain_x86(CORE, config):
        fuse_projections(model)


def read_ir(core: ov.Core, xml: Path, weights: MappedWeights | None = None) -> ov.Model:
    """Read a graph, with its .bin or with weights that are mapped already."""
    try:
        if weights is None:
            return core.read_model(xml)
        return core.read_model(xml.read_text(encoding="utf-8"), weights.tensor)
    except (RuntimeError, OSError, UnicodeDecodeError) as exc:
        raise ModelFormatError(f"{xml} cannot be read: {first_line(exc)}") from exc


def compile_graph(
    source: Source, model: ov.Model, properties: Mapping[str, Any]
) -> ov.CompiledModel:
    """Compile a graph of a source's for its device.

    Raises:
        DeviceError: the device refuses it, or the properties.
    """
    device = source.config.device
    try:
        return CORE.compile_model(model, device, dict(properties))
    except (RuntimeError, TypeError) as exc:
        raise DeviceError(
            f"{device} cannot compile {source.xml} with {dict(properties)}: {first_line(exc)}"
        ) from exc


def check_device(core: ov.Core, device: str) -> None:
    base = device.split(":")[0].split(".")[0]
    available = core.available_devices
    if base not in VIRTUAL_DEVICES and base not in {name.split(".")[0] for name in available}:
        raise DeviceError(f"unknown device {device!r}; available here: {', '.join(available)}")


def _context_length(folder: Path) -> int:
    path = folder / "config.json"
    if not path.is_file():
        return _UNBOUNDED_CONTEXT
    config = read_json(path)
    text_config = config.get("text_config")
    for section in (config, text_config if isinstance(text_config, dict) else {}):
        for key in _CONTEXT_KEYS:
            if section.get(key) is not None:
                return _checked_length(path, key, section[key])
    return _UNBOUNDED_CONTEXT


def _checked_length(path: Path, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelFormatError(f"{path}: {key} must be a whole number above 0, not {value!r}")
    return value
