"""The scheduler: what each step computes, and what becomes of the sampled tokens."""

from __future__ import annotations

import pytest

from ovgen.engine.batch import ScheduledBatch
from ovgen.engine.scheduler import Scheduler
from ovgen.engine.sequence import Request, Sequence

EOS = 99


def make_request(
    number: int, prompt_length: int, *, most: int = 100, deadline: float | None = None
):
    prompt = tuple(range(prompt_length))
    sequence = Sequence(number, prompt)
    return Request(number, prompt, most, frozenset({EOS}), deadline, [sequence])


def make_scheduler(*requests: Request, token_budget: int = 8, max_running_requests: int = 1):
    scheduler = Scheduler(token_budget=token_budget, max_running_requests=max_running_requests)
    for request in requests:
        scheduler.add(request)
    return scheduler


def shape(batch: ScheduledBatch | None) -> list[tuple[int, int, bool]]:
    assert batch is not None
    return [(s.request.request_id, s.num_scheduled_tokens, s.is_sampled) for s in batch.scheduled]


def run_step(scheduler: Scheduler, token_id: int = 5, now: float = 0.0):
    batch = scheduler.schedule()
    assert batch is not None
    return scheduler.update(batch, [token_id] * len(batch.sampled), now)


def test_nothing_to_do():
    scheduler = make_scheduler()
    assert scheduler.schedule() is None
    assert not scheduler.has_unfinished


@pytest.mark.parametrize(
    ("prompt_length", "chunks"),
    [(1, [1]), (8, [8]), (9, [8, 1]), (17, [8, 8, 1])],
)
def test_a_prompt_comes_in_chunks_of_the_budget(prompt_length: int, chunks: list[int]):
    request = make_request(0, prompt_length)
    scheduler = make_scheduler(request)
    for chunk in chunks[:-1]:
        assert shape(scheduler.schedule()) == [(0, chunk, False)]
        assert run_step(scheduler) == []
    assert shape(scheduler.schedule()) == [(0, chunks[-1], True)]
    assert run_step(scheduler) == [(request, request.sequences[0])]
    assert request.sequences[0].output_token_ids == [5]
    assert shape(scheduler.schedule()) == [(0, 1, True)]  # decoding


def test_first_come_first_served_one_at_a_time():
    requests = [make_request(number, 2, most=2) for number in range(3)]
    scheduler = make_scheduler(*requests)
    served = []
    while scheduler.has_unfinished:
        served.append(shape(scheduler.schedule())[0][0])
        run_step(scheduler)
    assert served == [0, 0, 1, 1, 2, 2]


def test_several_running_share_the_budget():
    scheduler = make_scheduler(
        make_request(0, 3), make_request(1, 9), make_request(2, 2), max_running_requests=3
    )
    assert shape(scheduler.schedule()) == [(0, 3, True), (1, 5, False)]
    run_step(scheduler)
    assert shape(scheduler.schedule()) == [(0, 1, True), (1, 4, True), (2, 2, True)]


def test_eos_ends_with_its_id():
    request = make_request(0, 2)
    scheduler = make_scheduler(request)
    run_step(scheduler)
    run_step(scheduler, EOS)
    sequence = request.sequences[0]
    assert (sequence.finish_reason, sequence.stop_reason) == ("stop", EOS)
    assert sequence.output_token_ids == [5, EOS]
    assert not scheduler.has_unfinished


def test_eos_wins_over_length():
    request = make_request(0, 2, most=1)
    run_step(make_scheduler(request), EOS)
    assert request.sequences[0].finish_reason == "stop"


def test_length():
    request = make_request(0, 2, most=3)
    scheduler = make_scheduler(request)
    for _ in range(3):
        assert request.sequences[0].finish_reason is None
        run_step(scheduler)
    assert request.sequences[0].finish_reason == "length"
    assert scheduler.schedule() is None


def test_deadline_in_decoding():
    request = make_request(0, 2, deadline=10.0)
    scheduler = make_scheduler(request)
    run_step(scheduler, now=9.9)
    assert not request.is_finished
    assert run_step(scheduler, now=10.0) == [(request, request.sequences[0])]
    sequence = request.sequences[0]
    assert (sequence.finish_reason, sequence.output_token_ids) == ("length", [5, 5])


def test_deadline_in_the_middle_of_a_prompt():
    request = make_request(0, 20, deadline=10.0)
    scheduler = make_scheduler(request)
    assert run_step(scheduler, now=11.0) == [(request, request.sequences[0])]
    assert request.sequences[0].output_token_ids == []
    assert not scheduler.has_unfinished


def test_deadline_while_waiting():
    running, late, patient = (
        make_request(0, 2),
        make_request(1, 2, deadline=10.0),
        make_request(2, 2),
    )
    scheduler = make_scheduler(running, late, patient)
    assert run_step(scheduler, now=9.0) == [(running, running.sequences[0])]
    updated = run_step(scheduler, now=10.0)
    assert updated == [(running, running.sequences[0]), (late, late.sequences[0])]
    assert late.sequences[0].finish_reason == "length"
    scheduler.abort(running)
    assert shape(scheduler.schedule()) == [(2, 2, True)]


@pytest.mark.parametrize("which", [0, 1])
def test_abort_frees_the_place(which: int):
    requests = [make_request(0, 2), make_request(1, 2)]
    scheduler = make_scheduler(*requests)
    run_step(scheduler)
    scheduler.abort(requests[which])
    assert requests[which].sequences[0].finish_reason == "abort"
    assert shape(scheduler.schedule())[0][0] == 1 - which
    scheduler.abort(requests[which])  # again: nothing happens
    scheduler.abort(requests[1 - which])
    assert not scheduler.has_unfinished


def test_what_ended_while_the_device_computed_takes_no_token():
    request = make_request(0, 2)
    scheduler = make_scheduler(request)
    batch = scheduler.schedule()
    assert batch is not None
    scheduler.abort(request)
    assert scheduler.update(batch, [5], 0.0) == []
    assert request.sequences[0].output_token_ids == []


def test_a_stop_string_overrides_the_length_by_the_same_token():
    request = make_request(0, 2, most=1)
    scheduler = make_scheduler(request)
    run_step(scheduler)
    scheduler.stop(request, request.sequences[0], "end")
    sequence = request.sequences[0]
    assert (sequence.finish_reason, sequence.stop_reason) == ("stop", "end")


def test_stop_ends_the_request():
    request = make_request(0, 2)
    scheduler = make_scheduler(request)
    run_step(scheduler)
    scheduler.stop(request, request.sequences[0], "end")
    assert not scheduler.has_unfinished


def test_preempted_sequences_are_computed_from_the_start_and_keep_their_tokens():
    request = make_request(0, 2)
    scheduler = make_scheduler(request)
    run_step(scheduler)
    run_step(scheduler)
    scheduler.preempt_all()
    assert shape(scheduler.schedule()) == [(0, 4, True)]
    assert request.sequences[0].output_token_ids == [5, 5]


def test_preempting_completes_an_update_that_broke_off_after_the_append():
    ended, cut = make_request(0, 2), make_request(1, 2, most=1)
    scheduler = make_scheduler(ended, cut, max_running_requests=2)
    scheduler.schedule()
    ended.sequences[0].output_token_ids.append(EOS)
    cut.sequences[0].output_token_ids.append(5)
    scheduler.preempt_all()
    assert ended.sequences[0].finish_reason == "stop"
    assert cut.sequences[0].finish_reason == "length"
    assert not scheduler.has_unfinished


def test_preempting_frees_the_place_of_what_ended_without_being_removed():
    request, following = make_request(0, 2), make_request(1, 2)
    scheduler = make_scheduler(request, following)
    scheduler.schedule()
    request.sequences[0].finish_reason = "abort"  # and then an interrupt
    scheduler.preempt_all()
    assert shape(scheduler.schedule()) == [(1, 2, True)]
