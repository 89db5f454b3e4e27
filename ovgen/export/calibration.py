"""How much each column of a weight counts: the mean square of the activations that it multiplies.

A text runs through the model in 8-bit weights. The mean square is the diagonal of the layer's
Hessian (Frantar et al., "GPTQ", 2022), so that a search weighted by it makes the products' error
small instead of the weights' (as AWQ does by scaling, Lin et al., 2023; here the graph stays).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as op

from ovgen.errors import ConfigError, StorageError
from ovgen.export.checkpoint import Checkpoint, Floats
from ovgen.export.ir_weights import IRCheckpoint
from ovgen.export.weight_reader import WeightReader
from ovgen.export.weight_store import WeightStore

WINDOW = 512
MAX_WINDOWS = 32
_MIN_TOKENS = 128
_MAX_BYTES = 1 << 20
# No column counts less than this share of the mean: rounding must not run wild where the text
# happened to have no activation.
_FLOOR = 0.01


def read_token_ids(text_file: Path, folder: Path) -> npt.NDArray[np.int64]:
    """The beginning of a text as ids [tokens], by the tokenizer of a folder.

    Raises:
        ConfigError: too short a text.
        StorageError: it cannot be read.
    """
    from ovgen.text.tokenizer import load_tokenizer

    try:
        with text_file.open("rb") as file:
            text = file.read(_MAX_BYTES).decode("utf-8", errors="ignore")
    except OSError as exc:
        raise StorageError(f"{text_file} cannot be read ({exc.strerror or exc})") from exc
    ids = load_tokenizer(folder).encode(text, add_special_tokens=False)[: WINDOW * MAX_WINDOWS]
    if len(ids) < _MIN_TOKENS:
        raise ConfigError(
            f"the calibration text {text_file} has {len(ids)} tokens; take one of {_MIN_TOKENS} or "
            f"more, up to {WINDOW * MAX_WINDOWS} are used"
        )
    return np.array(ids, np.int64)


def calibrate(
    checkpoint: Checkpoint,
    build: Callable[[Checkpoint, WeightReader], ov.Model],
    ids: npt.NDArray[np.int64],
    scratch: Path,
    progress: Callable[[str], None],
) -> dict[str, Floats]:
    """How much each column of a checkpoint's tensors counts, [cols] by tensor; matrices of experts
    and those that no token reached have no entry.

    Args:
        checkpoint: to run.
        build: its graph.
        ids: of the text [tokens].
        scratch: a folder that does not exist, for the model in 8 bits; it is removed.
        progress: called with a line about each window.
    """
    progress("calibration")
    scratch.mkdir()
    try:
        with WeightStore(scratch) as store:
            reader = WeightReader(checkpoint, "int8_sym", store)
            store.save(build(checkpoint, reader))
        importance = column_importance(scratch, ids, progress)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {name: importance[first] for name, first in reader.joined.items() if first in importance}


def column_importance(
    folder: Path, ids: npt.NDArray[np.int64], progress: Callable[[str], None]
) -> dict[str, Floats]:
    """Mean squares [cols] of what the weights of an IR multiply, by the weights' names.

    Each is relative to its mean, and not below `_FLOOR`.
    """
    with IRCheckpoint(folder) as ir:
        outputs = _add_outputs(ir)
        compiled = ov.Core().compile_model(ir.model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        sums = _run(compiled, outputs, ids, progress)
        del compiled
    importance = {}
    for name, total in sums.items():
        mean = float(total.mean())
        if mean > 0 and np.isfinite(mean):
            importance[name] = np.maximum(total / mean, _FLOOR).astype(np.float32)
    return importance


def _add_outputs(ir: IRCheckpoint) -> dict[str, str]:
    """Have the graph give the mean square of each product's input; names of outputs by weight."""
    results: list[Any] = []
    names: dict[str, str] = {}
    for weight in ir.weights:
        for user in weight.output.get_target_inputs():
            product = user.get_node()
            if product.get_type_name() != "MatMul":
                continue
            x = product.input_value(0)
            axes = np.arange(len(x.get_partial_shape()) - 1)
            result = op.result(op.reduce_mean(op.multiply(x, x), op.constant(axes), False))
            name = f"importance.{len(names)}"
            result.input_value(0).set_names({name})
            results.append(result)
            names[weight.tensor.name] = name
            break
    ir.model.add_results(results)
    return names


def _run(
    compiled: ov.CompiledModel,
    outputs: Mapping[str, str],
    ids: npt.NDArray[np.int64],
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """The means of all outputs over the windows of a text."""
    request = compiled.create_infer_request()
    inputs = {name for node in compiled.inputs for name in node.get_names()}
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    sums: dict[str, Any] = dict.fromkeys(outputs, 0.0)
    for number, window in enumerate(windows):
        progress(f"calibration {number + 1}/{len(windows)}")
        request.reset_state()
        size = len(window)
        feed = {
            "input_ids": window[None],
            "attention_mask": np.ones((1, size), np.int64),
            "position_ids": np.arange(size, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        request.infer({name: value for name, value in feed.items() if name in inputs})
        for weight, name in outputs.items():
            values = request.get_tensor(name).data.reshape(-1)
            sums[weight] = sums[weight] + values.astype(np.float64) * (size / len(ids))
    return sums
