"""Graph passes on graphs that are small enough to compute by hand, and on every tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from ovgen.model.graph_passes import page_attention
from ovgen.model.sampled_tokens import SAMPLED_TOKENS, gather_sampled_tokens

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


def block_model(mixing) -> ov.Model:
    """hidden [batch, tokens, 3], something over it, then a token-wise block with a residual."""
    hidden = op.parameter([-1, -1, 3], ov.Type.f32, name="hidden")
    square = op.constant(np.array([[1, 2, 0], [0, 1, 3], [2, 0, 1]], np.float32))
    mixed = mixing(hidden)
    mean = op.reduce_mean(op.multiply(mixed, mixed), op.constant([-1]), True)
    normed = op.divide(mixed, op.sqrt(op.add(mean, op.constant(np.float32(1)))))
    parts = op.variadic_split(
        op.matmul(normed, op.concat([square, square], 1), False, False),
        op.constant(np.int64(2)),
        op.constant([3, 3]),
    )
    inner = op.multiply(op.swish(parts.output(0)), parts.output(1))
    block = op.add(mixed, op.matmul(inner, square, False, True))
    node = op.matmul(block, op.constant(WEIGHTS), False, False)
    return ov.Model([op.result(node)], [hidden], "block")


def gathered_values(model: ov.Model) -> list[str]:
    (indices,) = (p for p in model.get_parameters() if p.get_friendly_name() == SAMPLED_TOKENS)
    gathers = [port.get_node() for port in indices.output(0).get_target_inputs()]
    return sorted(gather.input_value(0).get_node().get_type_name() for gather in gathers)


def running_sum(hidden):
    return op.cum_sum(hidden, op.constant(np.int64(1)))


def minus_the_mean_token(hidden):
    return op.subtract(hidden, op.reduce_mean(hidden, op.constant([1]), True))


def plus_the_next_ones_sum(hidden):
    """A value of the tokens' shape that no constant, but another input, makes."""
    return op.add(hidden, op.cum_sum(hidden, op.constant(np.int64(1)), exclusive=True))


@pytest.mark.parametrize(
    ("mixing", "values"),
    [
        (running_sum, ["CumSum"]),
        (minus_the_mean_token, ["Subtract"]),
        (plus_the_next_ones_sum, ["CumSum", "Parameter"]),
        (lambda hidden: op.relu(hidden), ["Parameter"]),
    ],
)
def test_tokens_are_gathered_after_the_last_that_mixes_them(mixing, values):
    plain, gathered = block_model(mixing), block_model(mixing)
    assert gather_sampled_tokens(gathered)
    assert gathered_values(gathered) == values
    hidden = np.random.default_rng(2).normal(size=(2, 7, 3)).astype(np.float32)
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    everything = ov.Core().compile_model(plain, "CPU", options)({"hidden": hidden})[0]
    np.testing.assert_allclose(compute(gathered, hidden, [6, 1]), everything[:, [6, 1]], rtol=1e-5)


def test_a_block_whose_values_are_wanted_elsewhere_is_computed_whole():
    model = block_model(running_sum)
    head = model.output(0).get_node().input_value(0).get_node()
    model.add_results([op.result(head.input_value(0))])
    assert gather_sampled_tokens(model)
    assert gathered_values(model) == ["Add"]


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "phi3", "gpt_neox"])
@pytest.mark.parametrize("is_paged", [False, True])
def test_the_last_blocks_network_is_spared_the_other_tokens(name: str, is_paged: bool):
    model = ov.Core().read_model(TINY / name / "openvino_model.xml")
    if is_paged:
        page_attention(model)
    assert gather_sampled_tokens(model, axis=0 if is_paged else 1)
    values = gathered_values(model)
    assert "Reshape" in values  # the heads of the last attention, side by side
    assert "Add" in values  # the residual stream
