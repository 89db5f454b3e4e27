"""The scheduler: what each step computes, and what becomes of the chosen tokens."""

from __future__ import annotations

import itertools
import math

import pytest

from ovgen.engine.batch import ScheduledBatch
from ovgen.engine.scheduler import Scheduler
from ovgen.engine.sequence import Choice, Request, Sequence

EOS = 99


def make_request(
    number: int, prompt_length: int, *, most: int = 100, deadline: float | None = None
):
    prompt = tuple(range(prompt_length))
    sequence = Sequence(number, prompt)
    return Request(number, prompt, most, frozenset({EOS}), deadline, [sequence])


def make_scheduler(*requests: Request, token_budget: int = 8, max_running_requests: int = 1):
    scheduler = Scheduler(
        token_budget=token_budget,
        max_running_requests=max_running_requests,
        ids=itertools.count(1000),
    )
    for request in requests:
        scheduler.add(request)
    return scheduler


def shape(batch: ScheduledBatch | None) -> list[tuple[int, int, bool]]:
    assert batch is not None
    for item in batch.scheduled:
        assert item.num_logits == int(item.is_sampled)
    assert batch.num_logits == sum(item.is_sampled for item in batch.scheduled)
    return [(s.request.request_id, s.num_scheduled_tokens, s.is_sampled) for s in batch.scheduled]


def choices_of(batch: ScheduledBatch, token_id: int) -> dict[int, list[Choice]]:
    """Each sampled sequence goes on by that token."""
    sampled = [item for item in batch.scheduled if item.is_sampled]
    return {item.request.request_id: [Choice(item.sequence, token_id)] for item in sampled}


def run_step(scheduler: Scheduler, token_id: int = 5):
    batch = scheduler.schedule()
    assert batch is not None
    return scheduler.update(batch, choices_of(batch, token_id))


def end_late(scheduler: Scheduler, now: float) -> list[Request]:
    """As the engine does it."""
    late = scheduler.late(now)
    for request in late:
        scheduler.end(request, "abort" if request.is_aborted else "length")
    return late


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
    assert run_step(scheduler) == [request]
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
    run_step(scheduler)
    assert end_late(scheduler, 9.9) == []
    assert not request.is_finished
    assert run_step(scheduler) == [request]
    assert end_late(scheduler, 10.0) == [request]
    sequence = request.sequences[0]
    assert (sequence.finish_reason, sequence.output_token_ids) == ("length", [5, 5])
    assert not scheduler.has_unfinished


def test_deadline_in_the_middle_of_a_prompt():
    request = make_request(0, 20, deadline=10.0)
    scheduler = make_scheduler(request)
    assert run_step(scheduler) == []
    assert end_late(scheduler, 11.0) == [request]
    assert request.sequences[0].output_token_ids == []
    assert not scheduler.has_unfinished


def test_deadline_while_waiting():
    running, late, patient = (
        make_request(0, 2),
        make_request(1, 2, deadline=10.0),
        make_request(2, 2),
    )
    scheduler = make_scheduler(running, late, patient)
    assert run_step(scheduler) == [running]
    assert end_late(scheduler, 9.0) == []
    assert run_step(scheduler) == [running]
    assert end_late(scheduler, 10.0) == [late]
    assert late.sequences[0].finish_reason == "length"
    scheduler.end(running, "abort")
    assert shape(scheduler.schedule()) == [(2, 2, True)]


def test_the_next_deadline_is_the_earliest_of_all():
    scheduler = make_scheduler(make_request(0, 2, deadline=30.0), make_request(1, 2))
    assert scheduler.next_deadline() == 30.0
    scheduler.add(make_request(2, 2, deadline=20.0))
    assert scheduler.next_deadline() == 20.0
    scheduler.schedule()
    assert scheduler.next_deadline() == 20.0
    end_late(scheduler, 40.0)
    assert scheduler.next_deadline() == math.inf


def test_aborted_requests_are_late_at_any_time():
    requests = [make_request(0, 2), make_request(1, 2)]
    scheduler = make_scheduler(*requests)
    run_step(scheduler)
    for request in requests:
        request.is_aborted = True
    assert end_late(scheduler, 0.0) == requests
    assert [r.sequences[0].finish_reason for r in requests] == ["abort", "abort"]
    assert not scheduler.has_unfinished
    assert not scheduler.has_running


@pytest.mark.parametrize("which", [0, 1])
def test_abort_frees_the_place(which: int):
    requests = [make_request(0, 2), make_request(1, 2)]
    scheduler = make_scheduler(*requests)
    run_step(scheduler)
    scheduler.end(requests[which], "abort")
    assert requests[which].sequences[0].finish_reason == "abort"
    assert shape(scheduler.schedule())[0][0] == 1 - which
    scheduler.end(requests[which], "length")  # again: nothing happens
    assert requests[which].sequences[0].finish_reason == "abort"
    scheduler.end(requests[1 - which], "abort")
    assert not scheduler.has_unfinished


def test_what_ended_while_the_device_computed_takes_no_token():
    request = make_request(0, 2)
    scheduler = make_scheduler(request)
    batch = scheduler.schedule()
    assert batch is not None
    scheduler.end(request, "abort")
    assert scheduler.update(batch, choices_of(batch, 5)) == []
    assert request.sequences[0].output_token_ids == []


def test_what_is_left_of_a_request_takes_the_place_of_all_it_has():
    request = make_request(0, 2)
    scheduler = make_scheduler(request)
    best = Sequence(7, (0, 1), [5])
    scheduler.end(request, "length", [best])
    assert request.sequences == [best]
    assert best.finish_reason == "length"
    assert not scheduler.has_unfinished


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


def make_samples(scheduler: Scheduler, count: int, *, most: int = 100) -> Request:
    """A request with so many sequences of a token each, and a prompt of 20."""
    request = make_request(0, 20, most=most)
    request.num_shared_tokens = 20
    scheduler.add(request)
    while not request.sequences[0].output_token_ids:
        batch = scheduler.schedule()
        [first] = request.sequences
        choices = [Choice(first, 5 + index, index=index) for index in range(count)]
        scheduler.update(batch, {0: choices} if batch.num_logits else {})
    return request


def advance_all(scheduler: Scheduler, request: Request, token_id: int, **changes) -> None:
    batch = scheduler.schedule()
    choices = [Choice(s, token_id, index=s.index, **changes) for s in request.unfinished]
    scheduler.update(batch, {request.request_id: choices})


def test_samples_are_forked_from_the_first_and_move_together():
    scheduler = make_scheduler()
    request = make_samples(scheduler, 3)
    assert [s.output_token_ids for s in request.sequences] == [[5], [6], [7]]
    assert [s.index for s in request.sequences] == [0, 1, 2]
    assert len({s.seq_id for s in request.sequences}) == 3
    assert {s.parent_id for s in request.sequences} == {0}
    before = [s.seq_id for s in request.sequences]
    assert shape(scheduler.schedule()) == [(0, 1, True)] * 3
    advance_all(scheduler, request, 8)
    assert [s.output_token_ids for s in request.sequences] == [[5, 8], [6, 8], [7, 8]]
    assert [s.seq_id for s in request.sequences] == before, "nothing more is forked"


def test_a_sequence_that_ended_is_left_out():
    scheduler = make_scheduler()
    request = make_samples(scheduler, 3)
    scheduler.stop(request, request.sequences[1], "end")
    assert shape(scheduler.schedule()) == [(0, 1, True)] * 2
    assert not request.is_finished


@pytest.mark.parametrize("changes", [{"mu": 3.0}, {"score": -1.0}])
def test_what_has_more_to_it_than_tokens_is_forked_in_each_step(changes):
    scheduler = make_scheduler()
    request = make_samples(scheduler, 2)
    request.is_beam_search = "score" in changes
    before = request.sequences
    advance_all(scheduler, request, 8, **changes)
    assert [s.parent_id for s in request.sequences] == [s.seq_id for s in before]
    assert [s.output_token_ids for s in before] == [[5], [6]], "left as they were"
    assert [s.output_token_ids for s in request.sequences] == [[5, 8], [6, 8]]


def test_preempted_samples_share_their_prompt_again():
    scheduler = make_scheduler()
    request = make_samples(scheduler, 3)
    advance_all(scheduler, request, 8)
    scheduler.preempt_all()
    first, *others = request.sequences
    for count in (8, 8, 4):
        [item] = scheduler.schedule().scheduled
        assert (item.sequence, item.num_scheduled_tokens, item.num_logits) == (first, count, 0)
        scheduler.update(ScheduledBatch((item,)), {})
    assert all(s.num_computed_tokens == 20 and s.parent_id == first.seq_id for s in others)
    assert shape(scheduler.schedule()) == [(0, 2, True)] * 3


def test_preempting_takes_away_what_only_some_samples_have():
    scheduler = make_scheduler()
    request = make_samples(scheduler, 4)
    request.sequences[0].output_token_ids.append(8)  # an update that broke off
    request.sequences[1].output_token_ids.append(EOS)
    request.sequences[0].state = request.sequences[1].state = object()
    scheduler.preempt_all()
    assert [s.output_token_ids for s in request.sequences] == [[5], [6, EOS], [7], [8]]
    assert [s.finish_reason for s in request.sequences] == [None, "stop", None, None]
    assert all(s.state is None for s in request.sequences)


def test_rows_of_a_request_share_the_budget():
    scheduler = make_scheduler(token_budget=8)
    request = make_samples(scheduler, 3)
    for sequence in request.sequences:
        sequence.output_token_ids += [1] * 9
    assert shape(scheduler.schedule()) == [(0, 2, False)] * 3
    scheduler = make_scheduler(token_budget=2)
    make_samples(scheduler, 3)
    assert shape(scheduler.schedule()) == [(0, 1, True)] * 3, "a row takes one at the least"


@pytest.mark.parametrize(
    ("lengths", "wanted"),
    [
        ((3, 9), [[0, 5], [0, 1], [2, 2], [1, 1]]),
        ((9, 3), [[5, 0], [1, 0], [2, 2], [1, 1]]),
        ((4, 4), [[2, 2], [2, 2]]),
    ],
)
def test_the_longer_of_two_prompts_begins(lengths, wanted):
    request = make_request(0, lengths[0])
    [sequence] = request.sequences
    sequence.negative = Sequence(1, tuple(range(lengths[1])), sequence.output_token_ids)
    scheduler = make_scheduler(request, token_budget=5)
    for numbers in wanted:
        batch = scheduler.schedule()
        counts = {item.sequence: item.num_scheduled_tokens for item in batch.scheduled}
        assert [counts.get(row, 0) for row in sequence.rows] == numbers
        assert batch.num_logits == (2 if numbers is wanted[-1] else 0)
        scheduler.update(batch, {})


def test_steady_decoding_gives_the_same_batch_again():
    request = make_request(0, 2)
    scheduler = make_scheduler(request)
    run_step(scheduler)
    batch = scheduler.schedule()
    scheduler.update(batch, choices_of(batch, 5))
    assert scheduler.schedule() is batch
    scheduler.update(batch, choices_of(batch, EOS))
    assert scheduler.schedule() is None


def test_one_that_comes_while_others_decode_is_let_in_by_the_next_batch():
    scheduler = make_scheduler(make_request(0, 2), make_request(1, 2), max_running_requests=3)
    run_step(scheduler)
    run_step(scheduler)
    batch = scheduler.schedule()
    scheduler.add(make_request(2, 3))  # while the device computes
    choices = {n: [Choice(item.sequence, 5)] for n, item in enumerate(batch.scheduled)}
    scheduler.update(batch, choices)
    assert shape(scheduler.schedule()) == [(0, 1, True), (1, 1, True), (2, 3, True)]


def test_one_that_has_to_wait_does_not_unsettle_the_others():
    scheduler = make_scheduler(make_request(0, 2))
    run_step(scheduler)
    batch = scheduler.schedule()
    scheduler.add(make_request(1, 3))
    scheduler.update(batch, choices_of(batch, 5))
    assert scheduler.schedule() is batch
