"""Fusing query, key and value: the same values from one, still compressed, matmul."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from ovgen.engine_config import EngineConfig
from ovgen.model import compile_properties, loader, trust
from ovgen.model.fusion import MAX_BYTES, fuse_projections
from ovgen.model.loader import load_model
from ovgen.model.paged_model import load_paged_model
from ovgen.model.paged_runner import PagedRunner
from ovgen.model.stateful_runner import StatefulRunner

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"
RNG = np.random.default_rng(0)
COLS, GROUP = 64, 32
ROWS = (32, 16, 16)  # as with fewer heads for keys and values
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def codes(dtype: ov.Type, shape: list[int]) -> ov.Node:
    """Random integers that live on when the array they come from is gone."""
    tensor = ov.Tensor(dtype, ov.Shape(shape))
    tensor.data[...] = RNG.integers(0, 256, tensor.data.shape, np.uint8).view(tensor.data.dtype)
    return ov.op.Constant(tensor, shared_memory=False)


def floats(shape: list[int], dtype: type = np.float32, size: float = 1.0) -> ov.Node:
    return op.constant((size * RNG.normal(size=shape)).astype(dtype))


def plain(rows: int) -> ov.Node:
    return floats([rows, COLS])


def half(rows: int) -> ov.Node:
    return op.convert(floats([rows, COLS], np.float16), "f32")


def compressed(
    dtype: str, *, group: int = COLS, zero_point: Callable[[list[int]], ov.Node] | None = None
) -> Callable[[int], ov.Node]:
    """A weight as optimum-intel writes it."""

    def weight(rows: int) -> ov.Node:
        shape = [rows, COLS] if group == COLS else [rows, COLS // group, group]
        value = op.convert(codes(getattr(ov.Type, dtype), shape), "f16")
        if zero_point is not None:
            value = op.subtract(value, op.convert(zero_point([*shape[:-1], 1]), "f16"))
        value = op.multiply(value, floats([*shape[:-1], 1], np.float16, 0.01))
        if group != COLS:
            value = op.reshape(value, op.constant(np.array([rows, COLS])), False)
        return op.convert(value, "f32")

    return weight


def one_zero_point(shape: list[int]) -> ov.Node:
    return op.constant(np.full([1] * len(shape), 128, np.uint8))


WEIGHTS = {
    "f32": plain,
    "f16": half,
    "int8": compressed("u8", zero_point=lambda shape: codes(ov.Type.u8, shape)),
    "int8_sym": compressed("i8"),
    "int8_one_zero_point": compressed("u8", zero_point=one_zero_point),
    "int4": compressed("u4", group=GROUP, zero_point=lambda shape: codes(ov.Type.u4, shape)),
    "int4_sym": compressed("i4", group=GROUP),
    "int4_per_channel": compressed("u4", zero_point=lambda shape: codes(ov.Type.u4, shape)),
}


Branch: TypeAlias = Callable[[ov.Node], ov.Node]


def model_of(query: Branch, key: Branch, value: Branch, *, rank: int = 3) -> ov.Model:
    """Branches over one activation that lead to an attention, and are given themselves as well."""
    x = op.parameter([-1] * (rank - 1) + [COLS], ov.Type.f32, name="x")
    shared = op.relu(x)
    parts = [op.tanh(branch(shared)) for branch in (query, key, value)]
    return ov.Model([op.result(node) for node in [*parts, attention(*parts)]], [x], "branches")


def attention(*parts: ov.Node) -> ov.Node:
    """Over one head of one feature, whatever the parts' own."""
    batch = 0 if len(parts[0].get_output_partial_shape(0)) > 2 else 1
    means = [op.reduce_mean(part, op.constant(-1), True) for part in parts]
    heads = [op.reshape(mean, op.constant([batch, 1, -1, 1]), True) for mean in means]
    return op.scaled_dot_product_attention(*heads, causal=True)


def linear(weight: ov.Node, bias: ov.Node | None = None) -> Branch:
    def branch(x: ov.Node) -> ov.Node:
        product = op.matmul(x, weight, False, True)
        return product if bias is None else op.add(product, bias)

    return branch


def linears(weight: Callable[[int], ov.Node], rows: tuple[int, int, int] = ROWS) -> ov.Model:
    return model_of(*(linear(weight(each)) for each in rows))


def compiled(model: ov.Model) -> ov.CompiledModel:
    return ov.Core().compile_model(model, "CPU", EXACT)


def compute(model: ov.Model) -> list[np.ndarray]:
    x = np.random.default_rng(1).normal(size=(2, 3, COLS)).astype(np.float32)
    return [value.copy() for value in compiled(model)({"x": x}).values()]


def ops(model: ov.Model) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ops())


def layers(model: ov.CompiledModel) -> list[tuple[str, list[str]]]:
    """What the plugin executes: the kind of each node, and its inputs' types."""
    return [
        (
            node.get_rt_info()["layerType"].value,
            [value.get_element_type().get_type_name() for value in node.input_values()],
        )
        for node in model.get_runtime_model().get_ordered_ops()
    ]


def assert_fused(model: ov.Model, saved: int) -> None:
    before, matmuls = compute(model), ops(model)["MatMul"]
    assert fuse_projections(model) == saved
    assert ops(model)["MatMul"] == matmuls - saved
    for value, wanted in zip(compute(model), before, strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-5)
    assert fuse_projections(model) == 0


def assert_left_alone(model: ov.Model) -> None:
    before = [node.get_friendly_name() for node in model.get_ordered_ops()]
    assert fuse_projections(model) == 0
    assert [node.get_friendly_name() for node in model.get_ordered_ops()] == before


@pytest.mark.parametrize("kind", WEIGHTS)
def test_one_matmul_gives_what_three_gave(kind: str):
    model = linears(WEIGHTS[kind])
    assert_fused(model, 2)
    assert [value.get_partial_shape()[2].get_length() for value in model.outputs[:3]] == list(ROWS)


@pytest.mark.parametrize(
    ("kind", "stored"),
    [("f32", "f32"), ("int8", "u8"), ("int8_sym", "i8"), ("int4", "u4"), ("int4_sym", "i4")],
)
def test_the_plugin_multiplies_the_weights_as_they_are_stored(kind: str, stored: str):
    model = linears(WEIGHTS[kind])
    fuse_projections(model)
    matmuls = [types for kind, types in layers(compiled(model)) if kind == "FullyConnected"]
    assert [types[1] for types in matmuls] == [stored]


def row(rows: int) -> ov.Node:
    return floats([1, 1, rows])


@pytest.mark.parametrize(
    "bias",
    [
        row,
        lambda rows: floats([rows]),
        lambda rows: op.convert(floats([1, rows], np.float16), "f32"),
    ],
    ids=["batched", "flat", "half"],
)
def test_biases_are_added_within_the_one_matmul(bias: Callable[[int], ov.Node]):
    model = model_of(*(linear(plain(rows), bias(rows)) for rows in ROWS))
    assert_fused(model, 2)
    assert ops(model)["Add"] == 1
    without = linears(plain)
    fuse_projections(without)
    kinds, wanted = (
        Counter(kind for kind, _ in layers(compiled(each))) for each in (model, without)
    )
    assert kinds["FullyConnected"] == 1
    assert kinds == wanted


def test_what_has_a_bias_and_what_has_none_stay_apart():
    branches = [linear(plain(32), row(32)), linear(plain(16)), linear(plain(8), row(8))]
    assert_left_alone(model_of(*branches))


def residual(x: ov.Node) -> ov.Node:
    return op.add(op.matmul(x, plain(COLS), False, True), x)


def used_without_its_bias(x: ov.Node) -> ov.Node:
    product = op.matmul(x, plain(16), False, True)
    return op.concat([op.relu(product), op.add(product, row(16))], 2)


@pytest.mark.parametrize("branch", [residual, used_without_its_bias])
def test_what_is_no_bias_stays_behind_the_split(branch: Callable[[ov.Node], ov.Node]):
    model = model_of(branch, branch, branch)
    assert_fused(model, 2)
    assert ops(model)["Add"] == 3


def test_a_constant_of_more_axes_is_no_bias():
    # Not computed: the plugin itself adds it within a matmul and loses the axis (OpenVINO 2026.4).
    model = model_of(*(linear(plain(16), floats([1, 1, 1, 16])) for _ in range(3)))
    assert fuse_projections(model) == 2
    assert [len(value.get_partial_shape()) for value in model.outputs[:3]] == [4, 4, 4]
    assert ops(model)["Add"] == 3


@pytest.mark.parametrize("names", [("int8", "int8", "int4"), ("f32", "int4_sym", "f32")])
def test_kinds_stay_apart(names: tuple[str, ...]):
    assert_left_alone(model_of(*(linear(WEIGHTS[name](16)) for name in names)))


def rounded(rows: int, dtype: str) -> ov.Node:
    return op.convert(op.convert(plain(rows), dtype), "f32")


@pytest.mark.parametrize(
    "weights",
    [
        lambda: (WEIGHTS["int8_sym"](16), compressed("u8")(16)),
        lambda: (rounded(16, "f16"), rounded(16, "bf16")),
        lambda: (op.subtract(plain(16), floats([1, 1])), op.subtract(plain(16), floats([1, 1]))),
        lambda: (WEIGHTS["int4_sym"](16), compressed("i4", group=16)(16)),
    ],
    ids=["signs", "roundings", "zero points", "groups"],
)
def test_small_differences_count(weights: Callable[[], tuple[ov.Node, ov.Node]]):
    different = [*weights(), weights()[0]]
    assert_left_alone(model_of(*(linear(weight) for weight in different)))


def test_a_weight_of_one_row():
    assert_fused(linears(WEIGHTS["int8"], (1, 16, 1)), 2)
    assert_fused(linears(WEIGHTS["int4"], (16, 1, 2)), 2)


def test_inputs_stay_apart():
    branch = linear(plain(16))
    model = model_of(branch, lambda x: linear(plain(16))(op.sigmoid(x)), linear(plain(8)))
    assert_left_alone(model)


def gated(x: ov.Node) -> ov.Node:
    return op.multiply(linear(plain(16))(x), op.sigmoid(linear(plain(16))(x)))


def same_key_and_value(x: ov.Node) -> ov.Node:
    query, both = (linear(plain(16))(x) for _ in range(2))
    return op.scaled_dot_product_attention(query, both, both, causal=False)


@pytest.mark.parametrize("branch", [gated, same_key_and_value])
def test_an_attention_of_other_matmuls_is_not_understood(branch: Branch):
    assert_left_alone(model_of(branch, branch, branch))


def test_what_leads_to_no_attention_stays_apart():
    x = op.parameter([-1, -1, COLS], ov.Type.f32, name="x")
    gate, up = (linear(plain(16))(x) for _ in range(2))
    swiglu = op.result(op.multiply(op.swish(gate), up))
    assert_left_alone(ov.Model([swiglu], [x], "feed-forward"))
    model = linears(plain)
    x = model.get_parameters()[0]
    gate, up = (linear(plain(16))(x) for _ in range(2))
    model.add_results([op.result(op.multiply(op.swish(gate), up))])
    assert_fused(model, 2)
    assert ops(model)["MatMul"] == 3


def test_positions_are_no_projection():
    """Exports compute the angles of RoPE by a matmul, within each query and key."""

    def turned(x: ov.Node) -> ov.Node:
        positions = op.reduce_sum(x, op.constant(-1), True)
        angles = op.matmul(positions, floats([1, 1, 16]), False, False)
        return op.multiply(linear(plain(16))(x), op.cos(angles))

    assert_fused(model_of(turned, turned, linear(plain(16))), 2)


def test_a_shape_of_the_product_is_that_of_its_part():
    def shaped(x: ov.Node) -> ov.Node:
        product = op.matmul(x, plain(16), False, True)
        return op.reshape(op.relu(product), op.shape_of(product), False)

    assert_fused(model_of(shaped, linear(plain(8)), linear(plain(8))), 2)


def test_a_matmul_that_only_gives_a_shape_is_no_projection():
    def shaped(x: ov.Node) -> ov.Node:
        shape = op.shape_of(linear(WEIGHTS["int8"](16))(x))
        return op.reshape(linear(plain(16))(x), shape, False)

    assert_fused(model_of(shaped, linear(plain(8)), linear(plain(8))), 2)


def test_large_weights_are_not_worth_their_memory():
    assert 4 * COLS * sum(ROWS) < MAX_BYTES  # so that the others are
    for limit, saved in [(4 * COLS * sum(ROWS) // 2, 2), (4 * COLS * sum(ROWS) // 2 - 1, 0)]:
        assert fuse_projections(linears(plain), limit) == saved


def transposed(x: ov.Node) -> ov.Node:
    return op.matmul(x, floats([COLS, 16]), False, False)


def transposed_input(x: ov.Node) -> ov.Node:
    return op.matmul(x, plain(16), True, True)


def computed(x: ov.Node) -> ov.Node:
    return op.matmul(x, op.matmul(x, x, True, False), False, True)


def scaled_columns(x: ov.Node) -> ov.Node:
    return op.matmul(x, op.multiply(plain(16), floats([COLS])), False, True)


def turned_columns(x: ov.Node) -> ov.Node:
    scales = op.reshape(floats([COLS, 1]), op.constant(np.array([1, COLS])), False)
    return op.matmul(x, op.multiply(plain(COLS), scales), False, True)


def mixed_rows(x: ov.Node) -> ov.Node:
    return op.matmul(x, op.softmax(plain(16), 0), False, True)


def odd_rows(x: ov.Node) -> ov.Node:
    zero_points = codes(ov.Type.u4, [15, 1])
    weight = op.subtract(
        op.convert(codes(ov.Type.u4, [15, COLS]), "f32"), op.convert(zero_points, "f32")
    )
    return op.matmul(x, weight, False, True)


def test_experts_see_picked_tokens():
    assert_left_alone(model_of(*(linear(plain(16)) for _ in range(3)), rank=2))


@pytest.mark.parametrize(
    "branch",
    [transposed, transposed_input, computed, scaled_columns, turned_columns, mixed_rows, odd_rows],
)
def test_other_weights_stay_as_they_are(branch: Callable[[ov.Node], ov.Node]):
    assert_left_alone(model_of(branch, branch, branch))


def test_a_weight_that_is_an_input_stays_as_it_is():
    x = op.parameter([-1, -1, COLS], ov.Type.f32, name="x")
    weights = [op.parameter([16, COLS], ov.Type.f32) for _ in range(3)]
    attended = attention(*(linear(weight)(x) for weight in weights))
    assert_left_alone(ov.Model([op.result(attended)], [x, *weights], "inputs"))


def test_shared_weights_would_take_their_memory_twice():
    tied = plain(16)

    def looked_up(x: ov.Node) -> ov.Node:
        row = op.reduce_sum(
            op.gather(tied, op.constant([[0]]), op.constant(0)), op.constant(2), True
        )
        return op.add(linear(plain(16))(x), row)

    assert_left_alone(model_of(linear(tied), linear(plain(16)), looked_up))
    scale = floats([16, 1])
    scaled = [
        linear(op.multiply(op.convert(codes(ov.Type.i8, [16, COLS]), "f32"), scale)) for _ in "qkv"
    ]
    assert_left_alone(model_of(*scaled))


@pytest.mark.parametrize("bias", [lambda rows: None, row], ids=["alone", "bias"])
def test_outputs_of_the_model_stay_as_they_are(bias: Callable[[int], ov.Node | None]):
    x = op.parameter([-1, -1, COLS], ov.Type.f32, name="x")
    parts = [linear(plain(16), bias(16))(x) for _ in range(3)]
    results = [op.result(node) for node in (parts[0], attention(*parts))]
    assert_left_alone(ov.Model(results, [x], "outputs"))


def test_branches_stay_as_they_are():
    def body() -> ov.Model:
        inner = op.parameter([-1, -1, COLS], ov.Type.f32)
        attended = attention(*(linear(plain(16))(inner) for _ in range(3)))
        return ov.Model([op.result(attended)], [inner], "body")

    x = op.parameter([-1, -1, COLS], ov.Type.f32, name="x")
    then, otherwise = body(), body()
    branching = op.if_op(op.constant(np.array(True)))
    branching.set_then_body(then)
    branching.set_else_body(otherwise)
    branching.set_input(x.output(0), then.get_parameters()[0], otherwise.get_parameters()[0])
    result = branching.set_output(then.get_results()[0], otherwise.get_results()[0])
    assert_left_alone(ov.Model([op.result(result)], [x], "if"))
    assert ops(then)["MatMul"] == 3


def test_our_own_exports_have_nothing_to_fuse():
    x = op.parameter([-1, -1, COLS], ov.Type.f32, name="x")
    product = op.matmul(x, plain(sum(ROWS)), False, True)
    parts = op.variadic_split(product, op.constant(2), op.constant(list(ROWS)))
    attended = attention(*(op.tanh(part) for part in parts.outputs()))
    assert_left_alone(ov.Model([op.result(attended)], [x], "own"))


SAVED = dict.fromkeys(("llama", "llama_no_beam_idx", "qwen2", "qwen3", "gemma3", "mixtral"), 4)


@pytest.mark.parametrize("folder", sorted(TINY.iterdir()), ids=lambda folder: folder.name)
def test_exported_architectures(folder: Path):
    model = ov.Core().read_model(folder / "openvino_model.xml")
    before = Counter(kind for kind, _ in layers(compiled(model)))
    saved = fuse_projections(model)
    after = Counter(kind for kind, _ in layers(compiled(model)))
    assert saved == SAVED.get(folder.name, 0)
    assert after["FullyConnected"] == before["FullyConnected"] - saved
    for kind in ("RoPE", "ScaledDotProductAttention", "RMS"):
        assert after[kind] == before[kind]
    assert fuse_projections(model) == 0


def logits(folder: Path, *, is_paged: bool) -> list[np.ndarray]:
    config = EngineConfig(precision="exact")
    prompts = [tuple(range(5, 5 + count)) for count in (50, 9)]
    if is_paged:
        paged = PagedRunner(load_paged_model(folder, config, 59), max_running_requests=2)
        return trust._together(paged, prompts)
    loaded = load_model(folder, config, None)
    runner = StatefulRunner(loaded.compiled, loaded.weights)
    return [trust._alone(runner, number, prompt) for number, prompt in enumerate(prompts)]


PAGED = [name for name in SAVED if name != "llama_no_beam_idx"]


@pytest.mark.parametrize(
    ("name", "is_paged"), [(name, False) for name in SAVED] + [(name, True) for name in PAGED]
)
def test_logits_are_the_same(name: str, is_paged: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loader, "is_plain_x86", lambda core, config: True)
    found = logits(TINY / name, is_paged=is_paged)
    monkeypatch.setattr(loader, "is_plain_x86", lambda core, config: False)
    for fused, separate in zip(found, logits(TINY / name, is_paged=is_paged), strict=True):
        np.testing.assert_allclose(fused, separate, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("has_amx", "num_matmuls"), [(False, 11), (True, 15)])
def test_a_load_fuses_unless_the_plugin_does(
    has_amx: bool, num_matmuls: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compile_properties.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(compile_properties, "has_amx", lambda core: has_amx)
    loaded = load_model(TINY / "llama", EngineConfig(precision="exact"), None)
    kinds = Counter(kind for kind, _ in layers(loaded.compiled))
    assert kinds["FullyConnected"] == num_matmuls
