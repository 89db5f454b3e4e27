"""A step of one token through a graph of its own: the same numbers, in the same KV cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ovgen.engine.batch import ScheduledBatch, ScheduledSequence
from ovgen.engine.sequence import Request, Sequence
from ovgen.engine_config import EngineConfig
from ovgen.model import paged_model
from ovgen.model.graph_passes import page_attention
from ovgen.model.kv_cache import BlockLayout, KVCache
from ovgen.model.paged_model import load_paged_model
from ovgen.model.paged_runner import PagedRunner
from ovgen.model.sampled_tokens import gather_sampled_tokens
from ovgen.model.single_token import SINGLE_TOKEN, add_single_token_body

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"
NAMES = ("llama", "gpt2", "bloom", "gpt_neox", "qwen2")
IN_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
PROPERTIES = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def make_runner(name: str, **options: object) -> PagedRunner:
    model = load_paged_model(TINY / name, EngineConfig(**options), num_blocks=6)
    return PagedRunner(model, max_running_requests=2)


def without_the_body(monkeypatch: pytest.MonkeyPatch, name: str, **options: object) -> PagedRunner:
    """The same graph as OpenVINO's transformation makes it, the cache its inputs."""
    with monkeypatch.context() as patch:
        patch.setattr(paged_model, "add_single_token_body", lambda model, cache: model)
        return make_runner(name, **options)


def steps(runner: PagedRunner, counts: list[int], blocks: list[int]) -> list[np.ndarray]:
    """The logits after each of some steps over one row."""
    tokens = tuple(3 + 7 * place % 300 for place in range(sum(counts)))
    sequence = Sequence(0, tokens, block_table=blocks)
    request = Request(0, tokens, 1, frozenset(), None, [sequence])
    rows = []
    for count in counts:
        runner.start(ScheduledBatch((ScheduledSequence(request, sequence, count, 1),)))
        logits = None
        while logits is None:
            logits = runner.wait(1.0)
        rows.append(logits[0].copy())
        sequence.num_computed_tokens += count
    return rows


@pytest.mark.parametrize("kv_cache_precision", ["f32", "u8", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_one_body(
    name: str, kv_cache_precision: str, monkeypatch: pytest.MonkeyPatch
):
    """In steps of one token and of several by turns, over a full block and beyond."""
    counts = [1, 1, 30, 1, 1, 9, 1]
    precision = "bf16" if kv_cache_precision == "bf16" else "f32"
    properties = {**PROPERTIES, "INFERENCE_PRECISION_HINT": precision}
    options = {"properties": properties, "kv_cache_precision": kv_cache_precision}
    found = steps(make_runner(name, **options), counts, [4, 1])
    plain = without_the_body(monkeypatch, name, **options)
    for row, other in zip(found, steps(plain, counts, [4, 1]), strict=True):
        np.testing.assert_allclose(row, other, atol=2e-5, rtol=0)


@pytest.mark.parametrize("precision", ["exact", "default"])
def test_both_bodies_write_to_the_one_cache(precision: str):
    runner = make_runner("llama", precision=precision)
    counts = [33, 1]
    steps(runner, counts, [3, 5])
    written = [part.any(axis=1).tolist() for part in runner.kv_cache.read(range(6))]
    assert written == [[False, False, False, True, False, True]] * len(written)
    first = [part[0, :].copy() for part in runner.kv_cache.read([5])]
    steps(runner, counts, [2, 0])
    for one, other in zip(first, runner.kv_cache.read([0]), strict=True):
        np.testing.assert_array_equal(one, other[0])


def test_a_cache_in_half_precision_stays_an_input(monkeypatch: pytest.MonkeyPatch):
    """As constants it would be converted, and each body have a copy."""
    # Which is what the IR asks for.
    runner = make_runner("llama", properties=PROPERTIES | IN_FLOAT32)
    plain = without_the_body(monkeypatch, "llama", properties=PROPERTIES | IN_FLOAT32)
    assert {layout.element_type for layout in runner.kv_cache.layouts} == {ov.Type.f16}
    found = steps(runner, [1, 30, 1], [4])
    np.testing.assert_array_equal(found, steps(plain, [1, 30, 1], [4]))
    assert all(part[0].any() for part in runner.kv_cache.read([4]))


def test_the_graph_of_one_token_has_fixed_shapes_and_the_inputs_are_those_left():
    model = ov.Core().read_model(TINY / "llama" / "openvino_model.xml")
    options = model.get_rt_info(["runtime_options"]).value
    page_attention(model)
    gather_sampled_tokens(model, axis=0)
    caches = [p.get_any_name() for p in model.inputs if "cache." in p.get_any_name()]
    others = {p.get_any_name() for p in model.inputs} - set(caches)
    kv_cache = KVCache([BlockLayout(n, ov.Type.f32, (2, 32, 16)) for n in caches], 3)
    both = add_single_token_body(model, kv_cache.tensors)
    assert {port.get_any_name() for port in both.inputs} == others | {SINGLE_TOKEN}
    (choice,) = [node for node in both.get_ops() if node.get_type_name() == "If"]
    single, ragged = choice.get_function(0), choice.get_function(1)
    assert single.output(0).get_partial_shape() == ov.PartialShape([1, 1, 320])
    assert ragged.output(0).get_partial_shape() == ov.PartialShape([-1, 1, 320])
    assert both.output(0).get_partial_shape()[0].is_dynamic
    assert both.get_rt_info(["runtime_options"]).value == options
