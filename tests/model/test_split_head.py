"""A graph cut in two computes what it did as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from ovgen.engine.batch import ScheduledBatch, ScheduledSequence
from ovgen.engine.sequence import Request, Sequence
from ovgen.engine_config import EngineConfig
from ovgen.model.loader import load_model
from ovgen.model.paged_model import load_paged_model
from ovgen.model.paged_runner import PagedRunner
from ovgen.model.split_head import join_head, split_head
from ovgen.model.stateful_runner import StatefulRunner

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"
F32 = {"INFERENCE_PRECISION_HINT": "f32"}


def test_both_parts_together_are_the_whole():
    whole, body = (two_layers() for _ in range(2))
    head = split_head(body)
    assert head is not None
    assert (len(body.inputs), len(head.inputs)) == (1, 1)
    core = ov.Core()
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    hidden = core.compile_model(body, "CPU", F32)(x)[0]
    logits = core.compile_model(head, "CPU", F32)(hidden)[0]
    np.testing.assert_allclose(logits, core.compile_model(whole, "CPU", F32)(x)[0], rtol=1e-5)


def test_a_head_that_is_put_back_gives_the_whole():
    whole, parts = (two_layers() for _ in range(2))
    head = split_head(parts)
    assert head is not None
    join_head(parts, head)
    x = np.random.default_rng(0).normal(size=(1, 3, 4)).astype(np.float32)
    logits = [ov.Core().compile_model(model, "CPU", F32)(x)[0] for model in (parts, whole)]
    np.testing.assert_array_equal(*logits)


def two_layers(*, has_second_output: bool = False) -> ov.Model:
    """x [batch, tokens, 4] through two matrices and a soft cap."""
    weights = np.random.default_rng(1).normal(size=(2, 4, 4)).astype(np.float32)
    x = op.parameter([-1, -1, 4], ov.Type.f32, name="x")
    hidden = op.relu(op.matmul(x, op.constant(weights[0]), False, False))
    logits = op.tanh(op.matmul(hidden, op.constant(weights[1]), False, True))
    results = [op.result(logits)] + ([op.result(hidden)] if has_second_output else [])
    return ov.Model(results, [x], "model")


def test_a_graph_with_other_outputs_stays_whole():
    model = two_layers(has_second_output=True)
    assert split_head(model) is None
    assert len(model.outputs) == 2


@pytest.mark.parametrize("folder", sorted(TINY.iterdir()), ids=lambda folder: folder.name)
def test_the_head_of_every_architecture_is_found(folder: Path):
    model = ov.Core().read_model(folder / "openvino_model.xml")
    head = split_head(model)
    assert head is not None
    assert head.output(0).get_partial_shape()[-1] == 320
    assert "logits" not in {name for port in model.outputs for name in port.get_names()}


@pytest.mark.parametrize("is_paged", [False, True])
def test_runners_compute_both_parts(is_paged: bool):
    """In bfloat16 and a head in float32: near the exact logits, and not on bfloat16's grid."""
    exact = logits_of(EngineConfig(precision="exact"), is_paged)
    near = logits_of(EngineConfig(properties={"INFERENCE_PRECISION_HINT": "bf16"}), is_paged)
    spread = float(exact.max() - exact.min())
    assert 0 < np.abs(near - exact).max() < 0.05 * spread
    assert (near.view(np.uint32) & 0xFFFF).any()


def logits_of(config: EngineConfig, is_paged: bool) -> np.ndarray:
    """After a prompt, and after one token more."""
    runner: StatefulRunner | PagedRunner
    if is_paged:
        model = load_paged_model(TINY / "llama", config, num_blocks=4)
        runner = PagedRunner(model, max_running_requests=1)
    else:
        loaded = load_model(TINY / "llama", config, None)
        runner = StatefulRunner(loaded.compiled, loaded.weights, head=loaded.head)
    sequence = Sequence(0, tuple(range(10, 30)))
    sequence.block_table = [2]
    request = Request(0, sequence.prompt_token_ids, 4, frozenset(), None, [sequence])
    rows = []
    for count in (len(sequence.prompt_token_ids), 1):
        runner.start(ScheduledBatch((ScheduledSequence(request, sequence, count, 1),)))
        logits = None
        while logits is None:
            logits = runner.wait(0.001)
        rows.append(logits[0].copy())
        sequence.num_computed_tokens += count
        sequence.output_token_ids.append(7)
    runner.close()
    return np.stack(rows)
