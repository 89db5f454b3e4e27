"""From a checkpoint to an IR folder with the files that optimum-intel writes, all or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ovgen.errors import ConfigError
from ovgen.export.architectures import build_model, check_architecture
from ovgen.export.calibration import calibrate, read_token_ids
from ovgen.export.compression import FLOAT_MODES, CompressionConfig
from ovgen.export.compression_report import CompressionReport
from ovgen.export.gguf_checkpoint import GGUFCheckpoint
from ovgen.export.lora import with_adapters
from ovgen.export.output_folder import new_folder
from ovgen.export.safetensors_checkpoint import SafetensorsCheckpoint, open_safetensors
from ovgen.export.text_part import TextPart, has_text_part
from ovgen.export.weight_reader import WeightReader
from ovgen.export.weight_store import WeightStore

Progress = Callable[[str], None]
# Where weights are not rounded the cache is not either, unless a load says so: by default the CPU's
# is in 8 bits, and slower to attend to.
_KV_CACHE_PRECISION = ["runtime_options", "KV_CACHE_PRECISION"]
_NOT_OF_AN_IR = ("auto_map", "compression_config", "quantization_config")


def export_model(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    weights: CompressionConfig | str = "auto",
    adapters: Sequence[tuple[Path, float]] = (),
    calibration: Path | None = None,
    progress: Progress | None = None,
    on_report: Callable[[CompressionReport], None] | None = None,
) -> Path:
    """Write a model as a stateful OpenVINO IR folder and return the folder.

    The folder appears when it is complete, or not at all.

    Args:
        source: a GGUF file, or a folder as transformers saves it: config.json, safetensors and
            tokenizer.json. Of a model that can see the language model is taken.
        folder: must not exist, or be empty.
        weights: how they are stored, or a mode alone; see `CompressionConfig`.
        adapters: folders of LoRA adapters and their scales, fused one after the other.
        calibration: a text; what runs through the model in it decides what counts in 4 bits.
        progress: called with a line about each stage.
        on_report: called with what became of the weights.

    Raises:
        ConfigError: ``weights`` that are unknown or cannot be, or a folder that holds something.
        ModelError: the source is missing, damaged or of an unsupported kind.
        StorageError: the disk is full or may not be written.
    """
    config = CompressionConfig(mode=weights) if isinstance(weights, str) else weights
    if calibration is not None and not config.searches_scales:
        raise ConfigError(
            "calibration has no effect without a search for scales; take 4-bit weights, or leave "
            "it out"
        )
    target = Path(folder)
    with open_checkpoint(source) as checkpoint:
        check_architecture(checkpoint)
        with new_folder(target) as partial:
            report = _write(
                checkpoint, partial, config, adapters, calibration, progress or (lambda line: None)
            )
    if on_report is not None:
        on_report(report)
    return target


def open_checkpoint(
    source: str | os.PathLike[str],
) -> GGUFCheckpoint | SafetensorsCheckpoint | TextPart:
    """Open a GGUF file or a folder of transformers; use it as a context manager."""
    if not Path(source).is_dir():
        return GGUFCheckpoint(source)
    checkpoint = open_safetensors(source)
    try:
        return TextPart(checkpoint) if has_text_part(checkpoint) else checkpoint
    except BaseException:
        checkpoint.close()
        raise


def _write(
    checkpoint: GGUFCheckpoint | SafetensorsCheckpoint | TextPart,
    folder: Path,
    weights: CompressionConfig,
    adapters: Sequence[tuple[Path, float]],
    calibration: Path | None,
    progress: Progress,
) -> CompressionReport:
    from ovgen.export.openvino_tokenizer import export_openvino_tokenizer

    progress("tokenizer")
    ids = _write_tokenizer(checkpoint, folder)
    fused = with_adapters(checkpoint, adapters, exact=weights.mode == "exact")
    with fused, WeightStore(folder) as store:
        importance = None
        if calibration is not None:
            text = read_token_ids(calibration, folder)
            importance = calibrate(fused, build_model, text, folder / "calibration", progress)
        progress("weights")
        reader = WeightReader(
            fused,
            weights,
            store,
            importance=importance,
            on_read=lambda share: progress(f"weights {share:.0%}"),
        )
        model = build_model(fused, reader)
        if weights.mode in (*FLOAT_MODES, "exact"):
            model.set_rt_info("f16", _KV_CACHE_PRECISION)
        write_json(folder / "config.json", _config(checkpoint.config) | ids)
        progress("graph")
        store.save(model)
    progress("tokenizer graphs")
    report = reader.report
    if note := export_openvino_tokenizer(folder):
        report.notes = [*report.notes, note]
    return report


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what is not so any more: the weights' format, and code to be run."""
    return {key: value for key, value in config.items() if key not in _NOT_OF_AN_IR}


def _write_tokenizer(
    checkpoint: GGUFCheckpoint | SafetensorsCheckpoint | TextPart, folder: Path
) -> dict[str, Any]:
    """The tokenizer's files; gives the ids that the config has to have besides its own."""
    if not isinstance(checkpoint, GGUFCheckpoint):
        from ovgen.export.tokenizer_files import copy_tokenizer

        copy_tokenizer(checkpoint.path, folder)
        return {}
    from ovgen.export.tokenizer import export_tokenizer

    tokens = export_tokenizer(checkpoint.gguf, folder)
    ends = tokens.eos_token_ids
    ids = {
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends) or None,
        "pad_token_id": tokens.pad_token_id,
    }
    return {key: value for key, value in ids.items() if value is not None}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, indented."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
