"""The bytes of a paged KV cache, out and in, also while the device computes."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pytest

from ovgen.engine.batch import ScheduledBatch, ScheduledSequence
from ovgen.engine.sequence import Request, Sequence
from ovgen.engine_config import EngineConfig
from ovgen.model.paged_model import load_paged_model
from ovgen.model.paged_runner import PagedRunner

LLAMA = Path(__file__).parents[1] / "fixtures" / "tiny" / "llama"


def make_runner(**options) -> PagedRunner:
    model = load_paged_model(LLAMA, EngineConfig(**options), num_blocks=6)
    return PagedRunner(model, max_running_requests=4)


def a_batch(tokens: list[int], blocks: list[int], num_computed: int = 0) -> ScheduledBatch:
    ids = count()
    sequence = Sequence(next(ids), tuple(tokens), block_table=blocks)
    sequence.num_computed_tokens = num_computed
    request = Request(next(ids), tuple(tokens), 0, frozenset(), None, [sequence])
    return ScheduledBatch((ScheduledSequence(request, sequence, len(tokens) - num_computed, 1),))


def run(runner: PagedRunner, batch: ScheduledBatch) -> np.ndarray:
    runner.start(batch)
    logits = None
    while logits is None:
        logits = runner.wait(1.0)
    return logits.copy()


@pytest.mark.parametrize("precision", ["u8", "f16", "f32"])
def test_content_that_is_moved_is_as_good_as_computed(precision: str):
    tokens = list(range(5, 69))
    one, other = (make_runner(kv_cache_precision=precision) for _ in range(2))
    run(one, a_batch(tokens, [0, 1]))
    content = one.block_store.read([0, 1])
    assert content.shape == (2, one.block_store.layout["block_bytes"])
    other.block_store.write([4, 2], content)
    assert (other.block_store.read([4, 2]) == content).all()
    computed = run(one, a_batch([*tokens, 70], [0, 1, 2], num_computed=64))
    assert (run(other, a_batch([*tokens, 70], [4, 2, 0], num_computed=64)) == computed).all()


def test_layouts_tell_precisions_apart():
    layouts = [
        make_runner(**options).block_store.layout
        for options in (
            {"precision": "exact"},
            {"kv_cache_precision": "f32"},  # as many bytes, computed differently
            {"kv_cache_precision": "u8"},
            {"kv_cache_precision": "f16"},
        )
    ]
    assert all(layouts[i] != layouts[j] for i in range(4) for j in range(i))
    assert make_runner(precision="exact").block_store.layout == layouts[0]
    assert layouts[0]["block_size"] == 32
    assert layouts[0]["block_bytes"] == 2 * 2 * 2 * 32 * 16 * 4


def test_writing_waits_for_a_step_whose_result_stays():
    runner = make_runner(precision="exact")
    tokens = [5 + place % 200 for place in range(128)]
    wanted = run(runner, a_batch(tokens, [0, 1, 2, 3]))
    content = np.full((4, runner.block_store.layout["block_bytes"]), 7, np.uint8)
    for _ in range(20):
        runner.start(a_batch(tokens, [0, 1, 2, 3]))
        # Blocks that the step itself writes to, as those of a request that ended meanwhile.
        runner.block_store.write([0, 1, 2, 3], content)
        assert (runner.wait(1.0) == wanted).all()
        assert (runner.block_store.read([0, 1, 2, 3]) == 7).all()
    runner.block_store.write([0], content[:1])  # and without any
