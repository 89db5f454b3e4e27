"""The stateful runner over tiny models: state, aborted and broken steps."""

from __future__ import annotations

import gc
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
from ovgen.model.loader import load_model
from ovgen.model.stateful_runner import StatefulRunner

LLAMA = Path(__file__).parents[1] / "fixtures" / "tiny" / "llama"
PROMPT = (5, 6, 7, 8, 9)


@pytest.fixture(scope="module")
def compiled() -> ov.CompiledModel:
    return load_model(LLAMA, EngineConfig(precision="exact"), None).compiled


@pytest.fixture
def runner(compiled: ov.CompiledModel) -> StatefulRunner:
    return StatefulRunner(compiled)


def make_request(request_id: int, prompt: tuple[int, ...] = PROMPT) -> Request:
    sequence = Sequence(request_id, prompt)
    return Request(request_id, prompt, 99, frozenset(), None, [sequence])


def next_batch(request: Request, count: int | None = None) -> ScheduledBatch:
    [sequence] = request.sequences
    missing = sequence.num_tokens - sequence.num_computed_tokens
    return ScheduledBatch((ScheduledSequence(request, sequence, count or missing),))


def run(runner: StatefulRunner, request: Request, count: int | None = None) -> np.ndarray:
    batch = next_batch(request, count)
    runner.start(batch)
    logits = runner.wait().copy()
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
    np.testing.assert_array_equal(run(runner, request), whole)


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
    is_done = llm._engine._runner._request.wait_for(0)
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
            runner.wait()
        assert "\n" not in str(caught.value)
        runner.reset()
    runner.close()


def test_close_lets_everything_go():
    class Blob:
        pass

    loaded = load_model(LLAMA, EngineConfig(), None)
    blob = Blob()
    gone = weakref.ref(blob)
    runner = StatefulRunner(loaded.compiled, blob)
    request = weakref.ref(runner._request)
    runner.start(next_batch(make_request(0)))
    del loaded, blob
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
