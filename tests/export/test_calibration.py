"""What a text tells about the columns of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from export.small_tensors import ArrayCheckpoint, ArrayTensor
from openvino import opset15 as op
from small_tokenizers import byte_level

from ovgen.errors import ConfigError, StorageError
from ovgen.export.calibration import WINDOW, calibrate, column_importance, read_token_ids
from ovgen.export.checkpoint import Checkpoint
from ovgen.export.compression import CompressionConfig
from ovgen.export.exporter import export_model
from ovgen.export.graph_weights import embedding, linear, linears, matrix
from ovgen.export.weight_reader import WeightReader

VOCAB, HIDDEN, INNER = 50, 64, 96
RNG = np.random.default_rng(0)
SPREAD = np.exp(RNG.standard_normal(HIDDEN))
WEIGHTS = {
    "model.embed_tokens.weight": RNG.standard_normal((VOCAB, HIDDEN)) * SPREAD,
    "model.layers.0.gate_proj.weight": RNG.standard_normal((INNER, HIDDEN)) * 0.1,
    "model.layers.0.up_proj.weight": RNG.standard_normal((INNER, HIDDEN)) * 0.1,
    "model.layers.0.down_proj.weight": RNG.standard_normal((VOCAB, INNER)) * 0.1,
}
IDS = RNG.integers(0, VOCAB, WINDOW + 100)


def checkpoint() -> ArrayCheckpoint:
    return ArrayCheckpoint.of(
        *(ArrayTensor(name, values.astype(np.float32)) for name, values in WEIGHTS.items())
    )


def build(_: Checkpoint, weights: WeightReader) -> ov.Model:
    """A table, two matrices of one input, and one of their product."""
    ids = op.parameter([-1, -1], ov.Type.i64)
    ids.output(0).set_names({"input_ids"})
    table, gate, up, down = WEIGHTS
    x = embedding(matrix(weights.matrix(table, (VOCAB, HIDDEN), is_table=True)), ids)
    sizes = [INNER, INNER]
    stacked = weights.stack([(gate, INNER), (up, INNER)], HIDDEN)
    left, right = linears(x, stacked, sizes)
    y = linear(op.multiply(left, right), weights.matrix(down, (VOCAB, INNER)))
    return ov.Model([op.result(y)], [ids, *weights.placeholders], "tiny")


def expected() -> dict[str, np.ndarray]:
    """Mean squares over all tokens, relative to their mean."""
    table, gate, up, down = WEIGHTS
    x = WEIGHTS[table][IDS]
    product = (x @ WEIGHTS[gate].T) * (x @ WEIGHTS[up].T)
    inputs = {gate: x, up: x, down: product}
    means = {name: np.square(values).mean(axis=0) for name, values in inputs.items()}
    return {name: values / values.mean() for name, values in means.items()}


def test_importance_is_the_mean_square_of_the_inputs(tmp_path: Path) -> None:
    lines: list[str] = []
    found = calibrate(checkpoint(), build, IDS, tmp_path / "scratch", lines.append)
    assert found.keys() == expected().keys()  # a table that is only looked up has none
    for name, values in expected().items():
        np.testing.assert_allclose(found[name], np.maximum(values, 0.01), rtol=0.1, atol=0.002)
    assert lines == ["calibration", "calibration 1/2", "calibration 2/2"]
    assert list(tmp_path.iterdir()) == []


def test_the_scratch_folder_goes_away(tmp_path: Path) -> None:
    def broken(_: Checkpoint, weights: WeightReader) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(checkpoint(), broken, IDS, tmp_path / "scratch", print)
    assert list(tmp_path.iterdir()) == []


def test_activations_that_are_not_finite_tell_nothing(tmp_path: Path) -> None:
    from ovgen.export.weight_store import WeightStore

    broken = checkpoint()
    broken.tensors["model.layers.0.gate_proj.weight"].array[:] = 1e30
    broken.tensors["model.layers.0.up_proj.weight"].array[:] = 1e30
    with WeightStore(tmp_path) as store:
        store.save(build(broken, WeightReader(broken, "fp32", store)))
    found = column_importance(tmp_path, IDS, lambda line: None)
    assert list(found) == ["model.layers.0.gate_proj.weight"]


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_texts(tokenizer_folder: Path) -> None:
    text = tokenizer_folder / "text"
    text.write_text("many words of a text " * 100)
    ids = read_token_ids(text, tokenizer_folder)
    assert ids.dtype == np.int64
    assert len(ids) >= 128
    text.write_text("too short")
    with pytest.raises(ConfigError, match=r"text has \d+ tokens; take one of 128 or more"):
        read_token_ids(text, tokenizer_folder)
    with pytest.raises(StorageError, match="missing cannot be read"):
        read_token_ids(tokenizer_folder / "missing", tokenizer_folder)


@pytest.mark.parametrize(
    "config", [CompressionConfig(), CompressionConfig(mode="nf4", scale_search=False)]
)
def test_without_a_search_a_text_is_refused(config: CompressionConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="calibration has no effect"):
        export_model(tmp_path, tmp_path / "out", weights=config, calibration=tmp_path / "text")
