"""Graph passes on graphs that are small enough to compute by hand, and on every tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from ovgen.model.graph_passes import SAMPLED_TOKENS, gather_sampled_tokens, weight_group

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"
WEIGHTS = np.arange(12, dtype=np.float32).reshape(3, 4)


def head_model(*after, rank: int = 3, transpose_a: bool = False) -> ov.Model:
    """hidden [batch, tokens, 3] @ WEIGHTS, and the functions of ``after`` over it."""
    hidden = op.parameter([-1] * rank, ov.Type.f32, name="hidden")
    node = op.matmul(hidden, op.constant(WEIGHTS), transpose_a, False)
    for function in after:
        node = function(node)
    return ov.Model([op.result(node)], [hidden], "head")


def compute(model: ov.Model, hidden: np.ndarray, indices: list[int]) -> np.ndarray:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled({"hidden": hidden, SAMPLED_TOKENS: np.array(indices, np.int64)})[0]


def test_only_the_wanted_positions():
    model = head_model()
    assert gather_sampled_tokens(model)
    assert [port.get_any_name() for port in model.inputs] == ["hidden", SAMPLED_TOKENS]
    hidden = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    for indices in ([4], [0, 2], [3, 3, 1]):
        wanted = hidden[:, indices] @ WEIGHTS
        np.testing.assert_allclose(compute(model, hidden, indices), wanted, rtol=1e-5)


def soft_cap(node):
    cap = op.constant(np.float32(30))
    return op.multiply(op.tanh(op.divide(node, cap)), cap)


def half_precision_scale(node):
    return op.multiply(node, op.convert(op.constant(np.float16(0.5)), "f32"))


def bias(node):
    return op.add(op.constant(np.arange(4, dtype=np.float32)), node)


@pytest.mark.parametrize("after", [soft_cap, half_precision_scale, bias])
def test_what_stands_after_the_head_is_seen_through(after):
    plain, gathered = head_model(after), head_model(after)
    assert gather_sampled_tokens(gathered)
    hidden = np.random.default_rng(1).normal(size=(1, 6, 3)).astype(np.float32)
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    everything = ov.Core().compile_model(plain, "CPU", options)({"hidden": hidden})[0]
    np.testing.assert_allclose(compute(gathered, hidden, [5, 2]), everything[:, [5, 2]], rtol=1e-5)


def two_branches(node):
    return op.add(node, op.relu(node))


def reshaped(node):
    return op.unsqueeze(node, op.constant(np.int64(0)))


@pytest.mark.parametrize(
    ("after", "options"),
    [
        ([two_branches], {}),
        ([reshaped], {}),
        ([op.relu], {}),
        ([], {"rank": 2}),
        ([], {"transpose_a": True}),
    ],
)
def test_a_head_that_is_not_known_stays_as_it_is(after, options):
    model = head_model(*after, **options)
    before = [node.get_type_name() for node in model.get_ordered_ops()]
    assert not gather_sampled_tokens(model)
    assert [node.get_type_name() for node in model.get_ordered_ops()] == before
    assert len(model.inputs) == 1


def test_a_head_of_unknown_rank_stays_as_it_is():
    hidden = op.parameter(ov.PartialShape.dynamic(), ov.Type.f32, name="hidden")
    node = op.matmul(hidden, op.constant(WEIGHTS), False, False)
    assert not gather_sampled_tokens(ov.Model([op.result(node)], [hidden], "head"))


@pytest.mark.parametrize("folder", sorted(TINY.iterdir()), ids=lambda folder: folder.name)
def test_every_exported_architecture_is_understood(folder: Path):
    model = ov.Core().read_model(folder / "openvino_model.xml")
    assert gather_sampled_tokens(model)
    assert model.output(0).get_partial_shape()[-1] == 320


def weights_model(*constants: tuple[ov.Type, list[int]]) -> ov.Model:
    results = []
    for element_type, shape in constants:
        data = ov.Tensor(element_type, ov.Shape(shape))
        node = op.convert(ov.op.Constant(data, shared_memory=False), "f32")
        results.append(op.result(op.relu(node)))
    return ov.Model(results, [], "weights")


@pytest.mark.parametrize(
    ("constants", "group"),
    [
        ([], None),
        ([(ov.Type.i8, [64, 32])], None),  # per channel
        ([(ov.Type.f32, [4, 4, 32])], None),
        ([(ov.Type.i8, [64, 2, 16])], 16),
        ([(ov.Type.u4, [64, 2, 32]), (ov.Type.u4, [64, 2, 1])], 32),  # with zero points
        ([(ov.Type.i4, [64, 4, 32]), (ov.Type.i8, [16, 2, 64])], 32),  # the greater part
        ([(ov.Type.i4, [16, 4, 32]), (ov.Type.u8, [64, 2, 64])], 64),
    ],
)
def test_weight_group(constants, group):
    assert weight_group(weights_model(*constants)) == group
