"""After an error or an interrupt anywhere, every strategy gives what it gives undisturbed."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from fakes import VOCAB_SIZE, FakeRunner, Served, interrupt_at_line, random_script

from ovgen.engine.request_builder import Prompt

FEW = random_script(12, scale=1.5)
SAMPLES = {"do_sample": True, "seed": 7, "num_return_sequences": 3, "logprobs": 1}
BEAMS = {"num_beams": 3, "num_return_sequences": 2, "logprobs": 1}


# Where anything is changed: what is pure is left out, for it would take minutes.
CHANGING = {"engine.py", "scheduler.py", "sequence.py", "sequence_state.py", "output_processor.py"}


def likely_script(token_ids):
    row = np.full(VOCAB_SIZE, -30, np.float32)
    row[:12] = FEW(token_ids)
    return row


class Recorder:
    """A streaming processor that forbids a token by all those it has seen, in their order."""

    def __init__(self, tokens: tuple[int, ...] = ()) -> None:
        self.tokens = tokens

    def start(self) -> Recorder:
        return Recorder()

    def accept(self, token_ids: np.ndarray) -> None:
        self.tokens += tuple(token_ids.tolist())

    def process(self, logits: np.ndarray) -> np.ndarray:
        logits[1 + hash(self.tokens) % 11] = -np.inf
        return logits

    def fork(self) -> Recorder:
        return Recorder(self.tokens)


CASES = {
    "greedy": {},
    "greedy logprobs": {"logprobs": 2, "prompt_logprobs": 1},
    "sample": SAMPLES | {"num_return_sequences": 1},
    "samples": SAMPLES,
    "samples of a prompt with logprobs": SAMPLES | {"prompt_logprobs": 2},
    "penalties": SAMPLES | {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "mirostat": SAMPLES | {"mirostat_tau": 2.0},
    "one with mirostat": SAMPLES | {"mirostat_tau": 2.0, "num_return_sequences": 1},
    "streaming processors": SAMPLES | {"processors": [Recorder()]},
    "guidance": SAMPLES | {"guidance_scale": 1.5, "negative": (9, 8)},
    "guidance by a longer prompt": SAMPLES | {"guidance_scale": 1.5, "negative": (9,) * 11},
    "guided greedy": {"guidance_scale": 1.5},
    "beams": BEAMS,
    "beams with streaming processors": BEAMS | {"processors": [Recorder()]},
    "beams of a prompt with logprobs": BEAMS | {"prompt_logprobs": 2},
    "guided beams": BEAMS | {"guidance_scale": 1.5, "negative": (9, 8)},
    "drawn beams": BEAMS | {"do_sample": True, "seed": 5},
    "groups": BEAMS | {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "stop strings": SAMPLES | {"stop_strings": ["\x04", "\x05\x03", "\x07\x07"]},
    "beams with stop strings": BEAMS | {"stop_strings": ["\x04", "\x05\x03", "\x07\x07"]},
}


def add(served: Served, options: dict, most: int = 6):
    options = {"max_new_tokens": most} | options
    processors, negative = options.pop("processors", ()), options.pop("negative", None)
    prompt = Prompt((3, 1, 4, 1, 5), negative, user_processors=processors)
    return served.add(prompt, **options)


def comparable(output) -> tuple:
    return output.outputs, output.prompt_logprobs, output.seed


def undisturbed(options: dict, most: int = 6, token_budget: int = 3):
    served = Served(FakeRunner(likely_script), token_budget=token_budget)
    output = served.finish(add(served, options, most))
    served.assert_empty()
    return served, comparable(output)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("where", ["start_errors", "wait_errors"])
def test_an_error_in_any_step(name: str, where: str):
    before, wanted = undisturbed(CASES[name])
    for number in range(before.runner.num_starts):
        runner = FakeRunner(likely_script, **{where: {number: RuntimeError("device lost")}})
        served = Served(runner, token_budget=3)
        request = add(served, CASES[name])
        following = add(served, {})
        with pytest.raises(RuntimeError, match="device lost"):
            served.run(100)
        served.engine.recover()
        assert comparable(served.finish(request)) == wanted
        assert comparable(served.finish(following)) == undisturbed({})[1]
        served.assert_empty()


@pytest.mark.parametrize("name", CASES)
def test_errors_in_two_steps_out_of_three(name: str):
    _, wanted = undisturbed(CASES[name])
    errors = {number: RuntimeError("device lost") for number in range(200) if number % 7 > 2}
    served = Served(FakeRunner(likely_script, wait_errors=errors), token_budget=100)
    request = add(served, CASES[name])
    for _ in range(200):
        try:
            served.step()
        except RuntimeError:
            served.engine.recover()
    assert comparable(served.finish(request)) == wanted
    served.assert_empty()


@pytest.mark.parametrize("name", CASES)
def test_an_interrupt_anywhere(name: str):
    """At worst the output is lost, and known to be, as it is handed over."""
    _, wanted = undisturbed(CASES[name], most=3, token_budget=100)
    num_lost = 0
    for number in itertools.count(1, 3):
        served = Served(FakeRunner(likely_script), token_budget=100)
        request = add(served, CASES[name], most=3)
        before = sys.gettrace()
        sys.settrace(interrupt_at_line(number, CHANGING))
        try:
            served.run(4)
        except KeyboardInterrupt:
            sys.settrace(before)
            served.engine.recover()
        else:
            break
        finally:
            sys.settrace(before)
        served.run(10)
        assert not served.engine.is_known(request)
        output = served.output(request)
        num_lost += output is None
        if output is not None:
            assert comparable(output) == wanted, number
        served.assert_empty()
    assert number > 300
    assert num_lost < number / 60


@pytest.mark.parametrize("name", ["samples", "beams", "groups", "guided beams"])
def test_an_interrupt_as_a_request_is_aborted(name: str):
    outputs = []
    for number in itertools.count(0):  # without an interrupt at first
        served = Served(FakeRunner(likely_script))
        request = add(served, CASES[name] | {"eos_token_id": ()}, most=30)
        while len(request.sequences[0].output_token_ids) < 3:
            served.step()
        request.is_aborted = True
        served.runner.not_ready = range(1000)
        before = sys.gettrace()
        sys.settrace(interrupt_at_line(number, CHANGING | {"beam_decoder.py"}))
        try:
            served.step()
        except KeyboardInterrupt:
            sys.settrace(before)
            served.engine.recover()
        else:
            if outputs:
                break
        finally:
            sys.settrace(before)
        served.run(2)
        if output := served.output(request):
            outputs.append(comparable(output))
        served.assert_empty()
    assert all(output == outputs[0] for output in outputs)
    assert len(outputs) > number * 0.9


def fail_at_last(token_ids, logits):
    if len(token_ids) == 7:
        raise ZeroDivisionError
    return logits


@pytest.mark.parametrize("name", ["greedy", "samples", "beams"])
def test_an_interrupt_does_not_make_a_failure_an_output(name: str):
    options = CASES[name] | {"processors": [fail_at_last], "eos_token_id": ()}
    num_lost = 0
    for number in itertools.count(1, 2):
        served = Served(FakeRunner(likely_script))
        request = add(served, options)
        before = sys.gettrace()
        sys.settrace(interrupt_at_line(number, CHANGING))
        try:
            served.run(4)
        except KeyboardInterrupt:
            sys.settrace(before)
            served.engine.recover()
        else:
            break
        finally:
            sys.settrace(before)
        served.run(10)
        assert not served.engine.is_known(request)
        assert served.output(request) is None
        num_lost += request.request_id not in served.errors
        served.assert_empty()
    assert num_lost < number / 40


def test_what_failed_and_was_then_aborted_is_not_put_out(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    served = Served(FakeRunner(likely_script))
    request = add(served, {"processors": [fail_at_last]})
    with monkeypatch.context() as patch:
        patch.setattr(served.processor, "drop", interrupted)
        with pytest.raises(KeyboardInterrupt):
            served.run(10)
    served.engine.recover()
    served.engine.abort(request)
    served.run(3)
    assert request.request_id not in served.errors
    served.assert_empty()
