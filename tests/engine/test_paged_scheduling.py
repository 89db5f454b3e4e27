"""The whole engine over blocks of a KV cache: whatever comes, each request gives what it gives
alone, and no block is lost, shared while it is written, or found with something else in it."""

from __future__ import annotations

import itertools
from random import Random

import pytest
from fakes import CONTEXT, FakePagedRunner, Served
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paged_requests import (
    KINDS,
    Wanted,
    check_blocks,
    check_nothing_is_left,
    likely_script,
    paged,
    result,
)

from ovgen.engine.scheduler import Scheduler
from ovgen.engine.sequence import Request
from ovgen.errors import ConfigError, OvgenError, RequestError

STEMS = ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 4, 3, 2, 1, 2, 3, 4), (5,) * 12)
PROMPTS = st.builds(
    lambda stem, cut, end: (*stem[:cut], *end),
    st.sampled_from(STEMS),
    st.integers(3, 12),
    st.lists(st.integers(1, 3), max_size=4),
)
WANTED = st.builds(
    Wanted,
    st.sampled_from([*KINDS, "scores"]),
    PROMPTS,
    st.sampled_from([3, 7, 12, 16, 20]),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from(["", "", "salt"]),
)
ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 6),  # before which step it arrives
        WANTED,
        st.none() | st.none() | st.integers(0, 40),  # before which step it is aborted
        st.booleans(),  # how: at once, or at the next chance
    ),
    min_size=3,
    max_size=6,
)
SIZES = st.integers(1, 8)
BUDGETS = st.integers(1, 40)
POOLS = {
    "token_budget": BUDGETS,
    "size": SIZES,
    "spare": st.sampled_from([0, 1, 3, 8, 20]),
    "max_running_requests": st.sampled_from([6, 4, 2, 1]),
    "has_prefix_cache": st.booleans(),
}


def serve(served: Served, arrivals, requests: dict, most_steps: int = 3000) -> int:
    """Step until all have ended, and give how many steps that took."""
    last = max(max(when, abort_at or 0) for when, _, abort_at, _ in arrivals)
    for step in range(most_steps):
        for index, (when, wanted, abort_at, is_gentle) in enumerate(arrivals):
            if when == step:
                requests[index] = wanted.add(served)
            if index in requests and abort_at == step:
                if is_gentle:
                    requests[index].is_aborted = True
                else:
                    served.engine.abort(requests[index])
        try:
            served.step()
        except RuntimeError:
            served.engine.recover()
        check_blocks(served)
        if step > last and not served.engine.has_unfinished:
            return step
    raise AssertionError("all requests end")


@pytest.fixture(scope="module")
def num_preempted():
    """Requests preempted so far."""
    counts = [0]
    before = Scheduler._preempt

    def preempt(self, request):
        counts[0] += 1
        before(self, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "_preempt", preempt)
        yield lambda: counts[0]


def check(
    arrivals, size, spare, max_running_requests, broken_steps=(), not_ready=(), **options
) -> None:
    """Every request gives what it gives alone, in a pool that is just enough and ``spare``."""
    errors = {step: RuntimeError("broken") for step in broken_steps}
    runner = paged(
        [wanted for _, wanted, _, _ in arrivals],
        size,
        spare,
        max_running_requests=max_running_requests,
        start_errors=errors,
        wait_errors=errors,
        not_ready=not_ready,
    )
    served = Served(runner, **options)
    requests: dict = {}
    serve(served, arrivals, requests)
    served.step()  # what an abort left under way
    assert not served.errors
    for index, (_, wanted, abort_at, is_gentle) in enumerate(arrivals):
        output = served.output(requests[index])
        if abort_at is None or (output and not requests[index].is_aborted):
            assert result(served, requests[index]) == wanted.alone()
        elif is_gentle:
            assert output is not None
    for request in requests.values():
        served.engine.abort(request)  # once more is no harm
    check_blocks(served)
    check_nothing_is_left(served)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    arrivals=ARRIVALS,
    logits_budget=st.integers(1, 20),
    broken_steps=st.sets(st.integers(0, 40), max_size=2),
    not_ready=st.sets(st.integers(0, 40), max_size=5),
    **POOLS,
)
def test_whatever_comes_every_request_gives_what_it_gives_alone(**options):
    check(**options)


@pytest.mark.parametrize("seed", range(10))
def test_the_same_by_chance(num_preempted, seed: int):
    """As above, but crowded: Hypothesis likes its examples small."""
    random, before = Random(seed), num_preempted()
    for _ in range(12):
        arrivals = [
            (
                random.randint(0, 6),
                Wanted(
                    random.choice([*KINDS, "scores"]),
                    (*random.choice(STEMS)[: random.randint(3, 12)], random.randint(1, 3)),
                    random.randint(5, 20),
                    random.choice([0, 0, 0, 1]),
                    random.choice(["", "", "salt"]),
                ),
                random.choice([None, None, None, random.randint(1, 30)]),
                random.random() < 0.5,
            )
            for _ in range(random.randint(3, 7))
        ]
        check(
            arrivals,
            size=random.randint(1, 8),
            spare=random.choice([0, 1, 4]),
            max_running_requests=random.choice([6, 4, 2]),
            broken_steps=random.choice([(), (), random.sample(range(60), 2)]),
            not_ready=random.sample(range(60), 6),
            token_budget=random.choice([1, 5, 20, 40]),
            logits_budget=random.choice([2, 5, 50]),
            has_prefix_cache=random.random() < 0.7,
        )
    assert num_preempted() > before


@pytest.mark.parametrize("kind", KINDS)
def test_preempted_equals_not_preempted(num_preempted, kind: str):
    """Of three requests that begin alike the last one gives way, at the latest to the first."""
    before = num_preempted()
    for size, has_prefix_cache, budget in itertools.product((1, 3, 4), (False, True), (3, 100)):
        for stem, spare in ((9, 0), (12, 4)):
            wanted = [Wanted(kind, (*STEMS[2][:stem], end)[:12], 16) for end in (1, 2, 3)]
            served = Served(
                paged(wanted, size, spare), token_budget=budget, has_prefix_cache=has_prefix_cache
            )
            requests: dict = {}
            serve(served, [(0, each, None, False) for each in wanted], requests)
            for request, each in zip(requests.values(), wanted, strict=True):
                assert result(served, request) == each.alone()
            check_nothing_is_left(served)
    assert num_preempted() > before


def ends(served: Served, requests: list[Request], most_steps: int = 2000) -> tuple[list, list]:
    """In which step each request has its first token, and its end."""
    first, last = [0] * len(requests), [0] * len(requests)
    for step in range(1, most_steps):
        served.step()
        check_blocks(served)
        for index, request in enumerate(requests):
            mail = served.chunks[request.request_id]
            first[index] = first[index] or (step if mail else 0)
            last[index] = last[index] or (step if mail and mail[-1].output else 0)
        if all(last):
            return first, last
    raise AssertionError("all requests end")


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=2, max_size=6),
    most=st.integers(1, 12),
    priorities=st.lists(st.integers(0, 1), min_size=6, max_size=6),
    is_alike=st.booleans(),
    **POOLS,
)
def test_the_order_is_fair(
    lengths, most, priorities, is_alike, size, spare, max_running_requests, **options
):
    """Who is first by priority and arrival has its first token first, and, where all have the same
    lengths, its last too; whoever else gives way."""
    if is_alike:
        lengths = [lengths[0]] * len(lengths)
    wanted = [
        Wanted("greedy to the end", (*range(1, length), index + 1), most, priority)
        for index, (length, priority) in enumerate(zip(lengths, priorities, strict=False))
    ]
    served = Served(
        paged(wanted, size, spare, max_running_requests=max_running_requests), **options
    )
    requests = [each.add(served) for each in wanted]
    order = sorted(range(len(wanted)), key=lambda index: wanted[index].priority)
    first, last = ends(served, requests)
    assert [first[index] for index in order] == sorted(first)
    if is_alike:
        assert [last[index] for index in order] == sorted(last)
    check_nothing_is_left(served)


def test_who_comes_with_a_higher_priority_takes_the_blocks_of_the_others():
    later = [Wanted("greedy to the end", (n,) * 8, 16, priority=5) for n in (1, 2)]
    urgent = Wanted("samples to the end", (3,) * 8, 8)
    served = Served(paged([urgent, *later], spare=1))
    requests = [each.add(served) for each in later]
    served.run(4)
    assert [len(request.sequences[0].output_token_ids) for request in requests] == [4, 4]
    requests.append(urgent.add(served))
    served.finish(requests[2])
    assert served.output(requests[0]) is served.output(requests[1]) is None
    for request, each in zip(requests, [*later, urgent], strict=True):
        served.finish(request)
        assert result(served, request) == each.alone()
    check_nothing_is_left(served)


@settings(max_examples=60, deadline=None)
@given(
    wanted=st.lists(
        st.builds(
            Wanted,
            st.sampled_from(["greedy", "greedy to the end", "sample", "mirostat"]),
            PROMPTS,
            st.integers(1, 9),
            salt=st.sampled_from(["", "", "salt"]),
        ),
        max_size=6,
    ),
    size=SIZES,
    token_budget=BUDGETS,
)
def test_nothing_is_computed_twice(wanted, size: int, token_budget: int):
    served = Served(paged([Wanted("greedy", (1,) * 40)], size, 400), token_budget=token_budget)
    known: set[tuple[bytes, tuple[int, ...]]] = set()
    tails: list[tuple[bytes, tuple[int, ...]]] = []  # what ended within a block
    for each in wanted:
        before = served.runner.num_computed
        output = served.finish(each.add(served))
        tokens = (*output.prompt_token_ids, *output.token_ids)[:-1]
        beginnings = [tokens[: end + size] for end in range(0, len(tokens) - size + 1, size)]
        usable = [b for b in beginnings if len(b) < len(each.prompt)]
        is_known = [(each.salt, beginning) in known for beginning in usable]
        saved = size * [*is_known, False].index(False)
        alike = [num_alike(tail, each.salt, each.prompt[:-1], saved, size) for tail in tails]
        if max(alike, default=0):
            tails.pop(alike.index(max(alike)))
            saved += max(alike)
        if len(tokens) % size and each.kind != "mirostat":  # whose sequences are forks
            tails.append((each.salt, tokens))
        assert served.runner.num_computed - before == len(tokens) - saved
        known |= {(each.salt, beginning) for beginning in beginnings}


def num_alike(tail, salt: bytes, tokens: tuple[int, ...], start: int, size: int) -> int:
    """Tokens of a block that is not full with which others can go on after their first ones."""
    its_salt, its_tokens = tail
    begins_there = len(its_tokens) // size * size == start
    if its_salt != salt or not begins_there or its_tokens[:start] != tokens[:start]:
        return 0
    pairs = zip(its_tokens[start:], tokens[start:], strict=False)
    return [*(mine == other for mine, other in pairs), False].index(False)


def test_samples_and_beams_share_their_prompt():
    for kind in ("samples to the end", "drawn beams"):
        wanted = Wanted(kind, (1, 2, 3, 4, 5, 6), 5)
        served = Served(paged([wanted], spare=20))
        served.finish(wanted.add(served))
        assert served.runner.num_computed == 6 + 4 * wanted.num_sequences
        assert served.runner.num_copies >= wanted.num_sequences - 1


@pytest.mark.parametrize("kind", ["samples to the end", "guided samples by less", "drawn beams"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_whoever_begins_again_shares_its_prompt_again(kind: str, size: int):
    wanted = Wanted(kind, (1, 2, 3, 4, 5, 6, 7, 8), 6)
    served = Served(paged([wanted], size, 2))
    request = wanted.add(served)
    served.run(3)
    scheduler = served.engine._scheduler
    scheduler._steady = served.engine._batch = None
    scheduler._preempt(request)
    served.runner.reset()
    check_blocks(served)
    before = served.runner.num_computed
    served.run(4)
    num_own = max(len(s.output_token_ids) for s in request.sequences)
    rows = wanted.num_sequences * len(wanted.prompts)
    prompts = sum(map(len, wanted.prompts))
    assert served.runner.num_computed - before <= prompts + rows * num_own
    served.finish(request)
    assert result(served, request) == wanted.alone()
    check_nothing_is_left(served)


def test_nobody_begins_who_would_soon_give_way(num_preempted):
    """A newcomer waits where there is no room for all its tokens."""
    wanted = [Wanted("greedy to the end", (n,) * 8, 8) for n in (1, 2)]
    before = num_preempted()
    served = Served(paged(wanted, spare=1))
    requests = [each.add(served) for each in wanted]
    served.run(8)
    assert served.output(requests[0]) is not None
    served.finish(requests[1])
    assert num_preempted() == before
    assert served.runner.num_computed == 2 * 15


def test_what_no_longer_fits_fails_alone():
    wanted = [Wanted("greedy to the end", (n,) * 5, most) for n, most in ((1, 6), (2, 20), (3, 6))]
    served = Served(paged(wanted, spare=9))
    requests = [each.add(served) for each in wanted]
    served.run(4)
    smaller = FakePagedRunner(likely_script, num_blocks=3)
    served.engine.replace_runner(smaller, 100)
    served.runner = smaller
    with pytest.raises(RequestError, match=r"have 13 tokens, .* KV cache of 12 is too small"):
        served.finish(requests[1])
    for index in (0, 2):
        served.finish(requests[index])
        assert result(served, requests[index]) == wanted[index].alone()
    check_nothing_is_left(served)


def refused(wanted: Wanted, num_blocks: int, error: type[OvgenError], message: str) -> None:
    served = Served(FakePagedRunner(likely_script, num_blocks=num_blocks))
    with pytest.raises(error, match=message):
        wanted.add(served)
    check_nothing_is_left(served)


def test_what_never_fits_is_refused_at_once_with_the_figures():
    refused(Wanted("greedy", (1,) * 12), 3, RequestError, "prompt of 12 tokens.* of 12 tokens has")
    refused(
        Wanted("greedy", (1,) * 9, most=4),
        3,
        ConfigError,
        "max_new_tokens is 4, .* 9 tokens the KV cache of 12 tokens has room for 3",
    )
    refused(
        Wanted("beams", (1,) * 9, most=8),
        8,
        ConfigError,
        "is 8, .* KV cache of 32 tokens, for 3 sequences, has room for 7",
    )
    refused(Wanted("guided", (1,) * 9, most=4), 3, RequestError, "KV cache of 12 tokens")
    refused(Wanted("scores", (1,) * 9), 8, RequestError, "3 texts of 33 tokens .* of 32 tokens")


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([kind for kind in KINDS if "prompt" not in kind]),
    prompt=PROMPTS,
    num_blocks=st.integers(1, 40),
    size=SIZES,
)
def test_without_a_number_of_new_tokens_as_many_come_as_fit(kind, prompt, num_blocks, size):
    def served() -> Served:
        return Served(FakePagedRunner(likely_script, num_blocks=num_blocks, block_size=size))

    def wanted(most: int | None) -> Wanted:
        return Wanted(kind, prompt, most)

    try:
        request = wanted(None).add(each := served())
    except RequestError:
        assert wanted(1).num_blocks(size) > num_blocks
        return
    most = request.max_output_tokens
    assert most == CONTEXT - max(map(len, wanted(1).prompts)) or (
        wanted(most).num_blocks(size) <= num_blocks < wanted(most + 1).num_blocks(size)
    )
    each.finish(request)
    assert result(each, request) == wanted(most).alone()
    check_nothing_is_left(each)
