"""Aborts and deadlines: a request ends within one step, whatever the device is computing."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from fakes import EOS, VOCAB_SIZE, FakeRunner, Served, random_script

from ovgen.engine.request_builder import Prompt
from ovgen.engine.sequence import Request

SCRIPT = random_script(VOCAB_SIZE)
PROMPT = tuple(range(1, 21))
STRATEGIES = {
    "greedy": {},
    "samples": {"do_sample": True, "seed": 1, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "guided": {"guidance_scale": 1.5},
}
NEVER = range(1_000_000)

strategies = pytest.mark.parametrize("name", STRATEGIES)
kinds = pytest.mark.parametrize("kind", ["abort", "length"])


def serve(name: str, runner: FakeRunner | None = None, **budgets):
    served = Served(runner or FakeRunner(SCRIPT), **({"token_budget": 4} | budgets))
    options = {"eos_token_id": (), "max_new_tokens": 20} | STRATEGIES[name]
    return served, served.add(Prompt(PROMPT, PROMPT[:6]), **options)


def end(request: Request, kind: str) -> None:
    """From any thread, or by the clock."""
    if kind == "abort":
        request.is_aborted = True
    else:
        request.deadline = time.perf_counter()


def step_until(served: Served, is_there: Callable[[], bool]) -> None:
    for _ in range(100):
        if is_there():
            return
        served.step()
    pytest.fail("it does not come")


def check_end(served: Served, request: Request, kind: str, num_tokens: int):
    """The request is put out by the next step, and the following one is served as ever."""
    num_batches = len(served.runner.batches)
    served.step()
    output = served.output(request)
    assert output is not None
    assert len(served.runner.batches) == num_batches, "nothing more is computed for it"
    assert [completion.finish_reason for completion in output.outputs] == [kind] * len(
        output.outputs
    )
    assert [len(completion.token_ids) for completion in output.outputs] == [num_tokens] * len(
        output.outputs
    )
    assert served.finish(request) is output  # which checks the chunks
    served.runner.not_ready = ()
    wanted = Served(FakeRunner(SCRIPT)).generate([5], max_new_tokens=4)
    assert served.generate([5], max_new_tokens=4).outputs == wanted.outputs
    served.assert_empty()
    return output


@strategies
@kinds
@pytest.mark.parametrize("is_computing", [False, True])
@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_in_the_middle_of_a_prompt(name: str, kind: str, is_computing: bool, num_steps: int):
    served, request = serve(name)
    served.run(num_steps)
    if is_computing:
        served.runner.not_ready = NEVER
        served.run(3)
        assert served.output(request) is None
    end(request, kind)
    if num_steps == 0 and not is_computing:
        served.step()  # begins with the first batch
        assert served.output(request) is not None
        return
    num_left = 1 if is_computing else 0
    before = len(served.runner.batches)
    output = check_end(served, request, kind, 0)
    assert len(output.outputs) == 1, "no other has begun"
    assert served.runner.num_resets == num_left
    assert all(batch[0][0] != request.request_id for batch in served.runner.batches[before:])


@strategies
@kinds
@pytest.mark.parametrize("num_tokens", [1, 2, 7])
def test_while_the_device_computes_a_token(name: str, kind: str, num_tokens: int):
    served, request = serve(name)
    step_until(served, lambda: len(request.sequences[0].output_token_ids) >= num_tokens)
    served.runner.not_ready = NEVER
    served.run(2)
    end(request, kind)
    output = check_end(served, request, kind, num_tokens)
    assert len(output.outputs) == STRATEGIES[name].get("num_return_sequences", 1)
    if name in ("greedy", "samples", "guided"):
        other, same = serve(name)
        for completion, whole in zip(output.outputs, other.finish(same).outputs, strict=True):
            assert completion.token_ids == whole.token_ids[:num_tokens]


@strategies
def test_a_deadline_that_passes_as_a_token_comes_keeps_the_token(name: str):
    served, request = serve(name)
    step_until(served, lambda: len(request.sequences[0].output_token_ids) == 2)
    request.deadline = time.perf_counter()
    output = check_end(served, request, "length", 3)
    assert len(output.outputs) == STRATEGIES[name].get("num_return_sequences", 1)


@pytest.mark.parametrize("name", ["beams", "groups"])
def test_beams_that_are_cut_are_ranked_as_they_are(name: str):
    served, request = serve(name)
    step_until(served, lambda: len(request.sequences[0].output_token_ids) >= 5)
    totals = sorted((s.score for s in request.sequences), reverse=True)
    served.runner.not_ready = NEVER
    end(request, "abort")
    output = check_end(served, request, "abort", 5)
    scores = [completion.score for completion in output.outputs]
    assert scores == pytest.approx([total / 5 for total in totals[: len(scores)]])


def test_hypotheses_that_are_finished_stand_beside_beams_that_are_cut():
    served = Served(FakeRunner(SCRIPT))
    options = {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": [EOS, *range(1, 20)]}
    request = served.add(PROMPT, max_new_tokens=20, early_stopping="never", **options)
    step_until(served, lambda: any(s.finish_reason for s in request.sequences))
    best = max((s for s in request.sequences if s.finish_reason), key=lambda s: s.score)
    served.runner.not_ready = NEVER
    end(request, "abort")
    output = served.finish(request)
    assert (best.finish_reason, len(output.outputs)) == ("stop", 3)
    assert {completion.finish_reason for completion in output.outputs} == {"stop", "abort"}
    scores = [completion.score for completion in output.outputs]
    assert scores == sorted(scores, reverse=True)
    assert tuple(best.output_token_ids) in [c.token_ids for c in output.outputs]


def test_waits_are_no_longer_than_the_time_left():
    served = Served(FakeRunner(not_ready=NEVER))
    request = served.add([1], max_time=0.02)
    patient = served.add([2])
    served.step()
    assert served.runner.timeouts[0] <= 0.02
    time.sleep(0.021)
    served.step()
    assert served.runner.timeouts[1] == 0
    assert served.output(request).outputs[0].finish_reason == "length"
    served.step()
    assert served.runner.timeouts[2] == 0.05
    assert served.output(patient) is None


@kinds
def test_in_the_queue_while_another_one_is_computed(kind: str):
    served, running = serve("greedy")
    waiting = served.add([9], max_new_tokens=3)
    served.runner.not_ready = NEVER
    served.run(2)
    end(waiting, kind)
    served.step()
    output = served.output(waiting)
    assert (output.token_ids, output.outputs[0].finish_reason) == ((), kind)
    assert served.runner.num_resets == 0
    served.runner.not_ready = ()
    other, same = serve("greedy")
    assert served.finish(running).outputs == other.finish(same).outputs


@strategies
@kinds
@pytest.mark.parametrize("num_steps", [1, 4, 6])
def test_the_others_of_a_batch_go_on(name: str, kind: str, num_steps: int):
    served, request = serve(name, FakeRunner(SCRIPT, max_running_requests=3), token_budget=30)
    options = {"max_new_tokens": 9, "eos_token_id": ()}
    others = [served.add(PROMPT, **options), served.add(PROMPT, num_beams=2, **options)]
    served.run(num_steps)
    served.runner.not_ready = NEVER
    served.run(2)
    end(request, kind)
    served.step()
    assert served.output(request).outputs[0].finish_reason == kind
    served.runner.not_ready = ()
    for other, extra in zip(others, ({}, {"num_beams": 2}), strict=True):
        wanted = Served(FakeRunner(SCRIPT)).generate(PROMPT, **extra, **options)
        assert [o.token_ids for o in served.finish(other).outputs] == [
            o.token_ids for o in wanted.outputs
        ]
    assert served.runner.num_resets == 0
    computed = [
        sum(len(row[2]) for batch in served.runner.batches for row in batch if row[0] == o)
        for o in (other.request_id for other in others)
    ]
    assert computed == [len(PROMPT) + 8, len(PROMPT) + 2 * 8], "nothing of them twice"
    served.assert_empty()


def test_a_batch_that_nobody_waits_for_is_let_end_where_others_have_begun():
    runner = FakeRunner(SCRIPT, max_running_requests=2)
    served = Served(runner, token_budget=5)
    beams = served.add((1, 2, 3), num_beams=5, eos_token_id=(), max_new_tokens=9)
    other = served.add(PROMPT, max_new_tokens=3, eos_token_id=())
    served.run(2)  # two tokens of the other one were computed beside the beams' prompt
    assert [row[0] for row in runner.batches[-1]] == [beams.request_id] * 5
    runner.not_ready = NEVER
    end(beams, "abort")
    served.step()
    assert served.output(beams).outputs[0].finish_reason == "abort"
    runner.not_ready = ()
    wanted = Served(FakeRunner(SCRIPT)).generate(PROMPT, max_new_tokens=3, eos_token_id=())
    assert served.finish(other).outputs == wanted.outputs
    assert runner.num_resets == 0
    served.assert_empty()
