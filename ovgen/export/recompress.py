"""From an IR to an IR with its weights stored in another way, all else as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ovgen.errors import ConfigError, UnsupportedModelError
from ovgen.export.compression import CompressionConfig
from ovgen.export.compression_plan import CompressionPlan
from ovgen.export.compression_report import CompressionReport
from ovgen.export.graph_weights import matrix
from ovgen.export.ir_weights import IRCheckpoint, IRWeight
from ovgen.export.output_folder import new_folder
from ovgen.export.weight_store import MODEL_BIN, MODEL_XML, WeightStore
from ovgen.export.weights import MatrixRequest, read_matrix

# The last tells how optimum-intel quantized the weights, which is no longer so.
_NOT_COPIED = (MODEL_XML, MODEL_BIN, "openvino_config.json")


def recompress_model(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    weights: CompressionConfig | str,
    progress: Callable[[str], None] = lambda line: None,
    on_report: Callable[[CompressionReport], None] = lambda report: None,
) -> Path:
    """Write an IR folder again with other weights, and return the new folder.

    Args:
        source: the IR folder.
        folder: must not exist, or be empty.
        weights: how they are stored; ``auto`` and ``exact`` are what the IR is already.
        progress: called with a line about each stage.
        on_report: called with what became of the weights.

    Raises:
        ConfigError: weights that cannot be, or a folder that holds something.
        ModelError: the IR is missing or damaged, or has no weights that are known.
        StorageError: the disk is full or may not be written.
    """
    config = CompressionConfig(mode=weights) if isinstance(weights, str) else weights
    if config.mode in ("auto", "exact"):
        raise ConfigError(
            f"{source} is exported already, and its weights are {config.mode}; ask for another mode"
        )
    target, report = Path(folder), CompressionReport()
    with IRCheckpoint(Path(source)) as ir:
        if not ir.weights:
            raise UnsupportedModelError(f"{source}: no weights of a known form are in the graph")
        plan = CompressionPlan(config, ir)
        with new_folder(target) as partial:
            progress("weights")
            with WeightStore(partial) as store:
                for weight in ir.weights:
                    _replace(weight, plan, store, ir, report)
                ir.model.add_parameters(store.placeholders)
                progress("graph")
                store.save(ir.model)
            progress("other files")
            _copy_others(Path(source), partial)
    report.notes = plan.notes
    on_report(report)
    return target


def _replace(
    weight: IRWeight,
    plan: CompressionPlan,
    store: WeightStore,
    ir: IRCheckpoint,
    report: CompressionReport,
) -> None:
    users = list(weight.output.get_target_inputs())
    # Experts that a graph keeps apart see the tokens that were picked for them, [tokens, cols].
    is_expert = any(
        user.get_node().get_type_name() == "MatMul"
        and user.get_node().input_value(0).get_partial_shape().rank != 3
        for user in users
    )
    fmt = plan.format(weight.tensor, is_table=weight.is_table, is_expert=is_expert)
    request = MatrixRequest([weight.tensor], fmt, release=ir.release_pages)
    new, errors = read_matrix(request, store)
    report.add([weight.tensor], fmt, errors)
    value = matrix(new)
    for user in users:
        user.replace_source_output(value.output(0))


def _copy_others(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        if path.name in _NOT_COPIED:
            continue
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copy2(path, folder / path.name)
