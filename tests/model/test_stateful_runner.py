"""The stateful runner over tiny models: state, rows, aborted and broken steps."""

from __future__ import annotations

import gc
import itertools
import re
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from ovgen.engine.batch import ScheduledBatch, ScheduledSequence
from ovgen.engine.sequence import Request, Sequence
from ovgen.engine_config import EngineConfig
from ovgen.errors import DeviceError, UnsupportedModelError
from ovgen.llm import LLM
from ovgen.model.compiled_cache import CompiledCache
from ovgen.model.loader import LoadedModel, load_model
from ovgen.model.stateful_runner import StatefulRunner

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"
LLAMA = TINY / "llama"
NAMES = sorted(path.name for path in TINY.iterdir())
PROMPT = (5, 6, 7, 8, 9)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(LLAMA, EngineConfig(precision="exact"), None)


@pytest.fixture
def runner(loaded: LoadedModel) -> StatefulRunner:
    return StatefulRunner(loaded.compiled, loaded.weights)


def make_request(request_id: int, prompt: tuple[int, ...] = PROMPT) -> Request:
    sequence = Sequence(request_id, prompt)
    return Request(request_id, prompt, 99, frozenset(), None, [sequence])


def next_batch(request: Request, count: int | None = None) -> ScheduledBatch:
    [sequence] = request.sequences
    missing = sequence.num_tokens - sequence.num_computed_tokens
    count = count or missing
    return ScheduledBatch((ScheduledSequence(request, sequence, count, int(count == missing)),))


def run(runner: StatefulRunner, request: Request, count: int | None = None) -> np.ndarray:
    batch = next_batch(request, count)
    runner.start(batch)
    logits = runner.wait(60.0)
    assert logits is not None
    logits = logits.copy()
    for item in batch.scheduled:
        item.sequence.num_computed_tokens += item.num_scheduled_tokens
    return logits


def test_float32_rows_of_the_vocabulary(runner: StatefulRunner):
    logits = run(runner, make_request(0))
    assert (logits.shape, logits.dtype) == ((1, 320), np.float32)


def test_a_part_of_a_prompt_has_no_logits(runner: StatefulRunner):
    assert run(runner, make_request(0), 3).shape == (0, 320)


def test_token_by_token_gives_what_all_at_once_gives(runner: StatefulRunner):
    whole = run(runner, make_request(0))
    request = make_request(1)
    for _ in PROMPT:
        last = run(runner, request, 1)
    np.testing.assert_allclose(last, whole, atol=1e-5)


def test_another_request_starts_from_nothing(runner: StatefulRunner):
    whole = run(runner, make_request(0))
    run(runner, make_request(1, (99, 98)), 1)  # and is given up
    np.testing.assert_array_equal(run(runner, make_request(2)), whole)


def test_a_preempted_request_starts_from_nothing(runner: StatefulRunner):
    request = make_request(0)
    whole = run(runner, request)
    request.sequences[0].num_computed_tokens = 0
    runner.reset()  # as the engine does
    np.testing.assert_array_equal(run(runner, request), whole)


class Rows:
    """Rows of one request, which go through a runner in lockstep as the engine has them do."""

    def __init__(self, runner: StatefulRunner, request_id: int) -> None:
        self.runner = runner
        self.ids = itertools.count(1000 * request_id)
        self.request = Request(request_id, PROMPT, 99, frozenset(), None, [])

    def new(self, *prompt: int) -> Sequence:
        return Sequence(next(self.ids), prompt)

    def fork(self, parent: Sequence, *token_ids: int) -> Sequence:
        child = parent.fork(self.ids)
        child.output_token_ids += token_ids
        return child

    def step(self, count: int, *rows: Sequence, num_logits: tuple[int, ...] = ()) -> np.ndarray:
        """Logits after ``count`` more tokens of each row; a token a step where it has to be."""
        size = self.runner.max_batch_tokens or count
        for _ in range(0, count, size):
            items = [
                ScheduledSequence(self.request, row, size, number)
                for row, number in itertools.zip_longest(rows, num_logits, fillvalue=1)
            ]
            self.runner.start(ScheduledBatch(tuple(items)))
            logits = self.runner.wait(60.0)
            assert logits is not None
            for row in rows:
                row.num_computed_tokens += size
        return logits.copy()


@pytest.fixture(scope="module", params=NAMES)
def any_runner(request: pytest.FixtureRequest) -> StatefulRunner:
    loaded = load_model(TINY / request.param, EngineConfig(precision="exact"), None)
    return StatefulRunner(loaded.compiled, loaded.weights)


REQUEST_IDS = itertools.count(1)


def check_alone(runner: StatefulRunner, logits: np.ndarray, *rows: Sequence) -> None:
    """Each row's logits are those of its tokens alone. Forgets what the runner has computed."""
    assert len(logits) == len(rows)
    for row, own in zip(rows, logits, strict=True):
        single = Rows(runner, next(REQUEST_IDS))
        sequence = single.new(*row.token_ids(0, row.num_computed_tokens))
        [wanted] = single.step(sequence.num_tokens, sequence)
        np.testing.assert_allclose(own, wanted, atol=1e-4, rtol=0)


LONG = (17, 45, 8, 201, 33, 94, 61, 5, 150, 77, 12)
SHORT = (8, 120, 66, 29)


def test_rows_are_forked_reordered_dropped_and_grown_again(any_runner: StatefulRunner):
    rows = Rows(any_runner, next(REQUEST_IDS))
    results = []

    def step(count: int, *sequences: Sequence) -> None:
        logits = rows.step(count, *sequences)
        copies = [Sequence(0, s.prompt_token_ids, [*s.output_token_ids]) for s in sequences]
        for copy in copies:
            copy.num_computed_tokens = copy.num_tokens
        results.append((logits, copies))

    first = rows.new(*LONG)
    step(len(LONG), first)
    second, third = rows.fork(first, 41), rows.fork(first, 90)
    first.output_token_ids.append(7)
    step(1, first, second, third)  # forked, the first goes on
    third.output_token_ids += [13, 14]
    second.output_token_ids += [15, 16]
    step(2, third, second)  # the first is dropped, the others change places
    heirs = [rows.fork(second, 200), rows.fork(third, 201), rows.fork(second, 202)]
    step(1, *heirs)  # one of them twice, none of the parents goes on
    [last] = [rows.fork(heirs[2], 31)]
    step(1, last)
    many = [rows.fork(last, token_id) for token_id in (50, 51, 52, 53, 54)]
    step(1, *many)
    for logits, sequences in results:
        check_alone(any_runner, logits, *sequences)


def test_a_row_that_joins_late_is_padded(any_runner: StatefulRunner):
    assert any_runner.has_padding == (any_runner.max_batch_tokens is None), "but for mamba"
    if not any_runner.has_padding:
        return
    rows = Rows(any_runner, next(REQUEST_IDS))
    long, short = rows.new(*LONG), rows.new(*SHORT)
    rows.step(len(LONG) - len(SHORT), long)
    joined = rows.step(len(SHORT), long, short)
    heirs = [rows.fork(short, 41), rows.fork(long, 41), rows.fork(long, 90), rows.fork(short, 90)]
    forked = rows.step(1, *heirs)
    check_alone(any_runner, joined, long, short)
    check_alone(any_runner, forked, *heirs)


def test_guidance_by_a_graph_that_cannot_pad_is_refused():
    with LLM(TINY / "mamba", precision="exact", attention_backend="stateful") as llm:
        wanted = llm.generate(PROMPT, max_new_tokens=3).token_ids
        with pytest.raises(UnsupportedModelError, match="guidance"):
            llm.generate(PROMPT, guidance_scale=1.5, max_new_tokens=3)
        # Of the same length there is nothing to hide.
        same = {"guidance_scale": 1.5, "negative_prompt": PROMPT}
        assert llm.generate(PROMPT, max_new_tokens=3, **same).token_ids == wanted


def test_several_joins(runner: StatefulRunner):
    rows = Rows(runner, next(REQUEST_IDS))
    prompts = [LONG, LONG[:6], SHORT, (9,)]
    sequences = [rows.new(*prompt) for prompt in prompts]
    rows.step(5, sequences[0])
    rows.step(2, *sequences[:2])
    rows.step(3, *sequences[:3])
    logits = rows.step(1, *sequences)
    check_alone(runner, logits, *sequences)


@pytest.mark.parametrize("name", ["llama", "gpt2", "llama_no_beam_idx"])
def test_rows_ask_for_logits_of_some_of_their_last_tokens(name: str):
    loaded = load_model(TINY / name, EngineConfig(precision="exact"), None)
    runner = StatefulRunner(loaded.compiled, loaded.weights)
    rows = Rows(runner, next(REQUEST_IDS))
    long, short = rows.new(*LONG), rows.new(*SHORT)
    first = rows.step(7, long, num_logits=(3,))
    assert rows.step(2, long, short, num_logits=(0, 0)).shape == (0, 320)
    second = rows.step(2, long, short, num_logits=(0, 2))
    for logits, prompt, ends in ((first, LONG, (5, 6, 7)), (second, SHORT, (3, 4))):
        prefixes = [Sequence(0, prompt[:end], num_computed_tokens=end) for end in ends]
        check_alone(runner, logits, *prefixes)


def test_reset_forgets_a_batch_under_way(runner: StatefulRunner):
    whole = run(runner, make_request(0))
    runner.start(next_batch(make_request(1, (99, 98))))
    runner.reset()
    np.testing.assert_array_equal(run(runner, make_request(2)), whole)


def test_a_start_after_a_step_that_broke_off(runner: StatefulRunner):
    whole = run(runner, make_request(0))
    runner.start(next_batch(make_request(1, (99, 98))))  # and then a KeyboardInterrupt
    np.testing.assert_array_equal(run(runner, make_request(2)), whole)


def test_an_interrupt_need_not_wait_for_the_step(tmp_path: Path):
    # A signal must reach Python while the device computes: this prompt takes seconds.
    folder = shutil.copytree(LLAMA, tmp_path / "llama")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace(": 256", ": 65536"))
    program = f"""
import os, signal, threading
from ovgen import LLM
llm = LLM({str(folder)!r}, token_budget=100_000)
stream = llm.stream([5, 6, 7] * 3000, max_new_tokens=1)
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    next(stream)
except KeyboardInterrupt:
    is_done = llm._service._engine._runner._inference.request.wait_for(0)
    print("after" if is_done else "during", "the step", flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "during the step\n", done.stderr


def test_a_step_that_the_device_cannot_compute():
    input_ids = op.parameter([-1, -1], ov.Type.i64, name="input_ids")
    input_ids.output(0).set_names({"input_ids"})
    three = op.reshape(op.convert(input_ids, "f32"), op.constant(np.array([1, 3, 1])), False)
    logits = op.multiply(three, op.constant(np.ones((1, 1, 4), np.float32)))
    model = ov.Model([op.result(logits)], [input_ids], "takes three tokens")
    runner = StatefulRunner(ov.Core().compile_model(model, "CPU"))
    np.testing.assert_array_equal(run(runner, make_request(0, (5, 6, 7))), [[7] * 4])
    for _ in range(2):  # OpenVINO's CPU graph stays broken, but nothing hangs
        runner.start(next_batch(make_request(1, (5, 6, 7, 8))))
        with pytest.raises(DeviceError, match="failed to compute") as caught:
            runner.wait(60.0)
        assert "\n" not in str(caught.value)
        runner.reset()
    runner.close()


def test_pages_of_a_cached_model_are_dropped_in_the_first_step_only(tmp_path: Path):
    cache = CompiledCache(tmp_path)
    first = load_model(LLAMA, EngineConfig(), cache)
    fresh = StatefulRunner(first.compiled, first.weights)
    loaded = load_model(LLAMA, EngineConfig(), cache)
    (file,) = tmp_path.iterdir()
    assert sum(len(each.tensor.data) for each in loaded.weights) < file.stat().st_size
    runner = StatefulRunner(loaded.compiled, loaded.weights)
    for blob in loaded.weights:
        assert resident(blob.tensor.data) > 0
    for number in range(2):
        expected = run(fresh, make_request(number))
        np.testing.assert_array_equal(run(runner, make_request(number)), expected)
        sizes = [resident(blob.tensor.data) for blob in loaded.weights]
        assert bool(sum(sizes)) == bool(number), "tables are read again"
    runner.close()


def resident(array: np.ndarray) -> int:
    """Bytes in memory of the mapping that an array begins in."""
    address, is_its = array.ctypes.data, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_its = int(found[1], 16) <= address < int(found[2], 16)
        elif is_its and line.startswith("Rss:"):
            return int(line.split()[1]) << 10
    return 0


def test_close_lets_everything_go():
    loaded = load_model(LLAMA, EngineConfig(), None)
    gone = weakref.ref(loaded.weights[0])
    runner = StatefulRunner(loaded.compiled, loaded.weights)
    request = weakref.ref(runner._inference.request)
    runner.start(next_batch(make_request(0)))
    del loaded
    runner.close()
    runner.close()
    gc.collect()
    assert gone() is None
    assert request() is None


@pytest.mark.parametrize("names", [["input_ids", "pixel_values"], ["tokens"], ["attention_mask"]])
def test_inputs_of_another_kind_of_model(names: list[str]):
    parameters = [op.parameter([-1, -1], ov.Type.i64, name=name) for name in names]
    for parameter, name in zip(parameters, names, strict=True):
        parameter.output(0).set_names({name})
    model = ov.Model([op.result(op.relu(node)) for node in parameters], parameters, "other")
    with pytest.raises(UnsupportedModelError, match=names[-1]):
        StatefulRunner(ov.Core().compile_model(model, "CPU"))


DROPPED_IN_FLIGHT = """
import sys
from pathlib import Path
from ovgen.llm import LLM
for _ in range(10):
    llm = LLM(sys.argv[1])
    stream = llm.stream([5] * 200, max_new_tokens=20)
    next(stream)  # the step after this one is under way
    del stream, llm
print("fine")
"""


def test_a_model_dropped_without_close_while_it_computes():
    arguments = [sys.executable, "-c", DROPPED_IN_FLIGHT, str(LLAMA)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.returncode) == ("fine\n", 0), result.stderr
