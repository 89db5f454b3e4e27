"""An interrupt anywhere leaves the blocks of a KV cache consistent."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection
from contextlib import suppress

import pytest
from fakes import Served, interrupt_at_line
from paged_requests import Wanted, check_blocks, check_nothing_is_left, paged, result

from ovgen.engine.scheduler import Scheduler

DECIDING = {"block_manager.py", "scheduler.py"}
CHANGING = DECIDING | {"engine.py", "sequence.py", "sequence_state.py", "output_processor.py"}


def interrupted(served: Served, number: int, num_steps: int, files: Collection[str]) -> bool:
    """Whether the n-th line of these steps, where they are interrupted, comes at all."""
    before = sys.gettrace()
    sys.settrace(interrupt_at_line(number, files))
    try:
        served.run(num_steps)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def check_rest(served: Served, requests: list, wanted: list[Wanted]) -> int:
    """All requests go on as if nothing had been; gives how many were lost as they ended."""
    served.engine.recover()
    check_blocks(served)
    assert served.engine._scheduler._blocks.num_free == served.runner.num_blocks
    for _ in range(80):
        served.step()
        check_blocks(served)
        if not served.engine.has_unfinished:
            break
    num_lost = 0
    for request, each in zip(requests, wanted, strict=True):
        assert not served.engine.is_known(request)
        num_lost += served.output(request) is None
        assert served.output(request) is None or result(served, request) == each.alone()
    check_nothing_is_left(served)
    return num_lost


@pytest.mark.parametrize(
    "kind", ["greedy to the end", "samples to the end", "beams", "guided samples"]
)
def test_an_interrupt_anywhere_leaves_no_block_behind(kind: str):
    wanted = [Wanted(kind, (1, 2, 3, 4, n), 6) for n in (1, 2)]
    num_lost = 0
    for number in itertools.count(1, 97):
        served = Served(paged(wanted, 2, 3))
        requests = [each.add(served) for each in wanted]
        if not interrupted(served, number, 8, CHANGING):
            break
        num_lost += check_rest(served, requests, wanted)
    assert number > 1000
    assert num_lost < number / 97 / 10


@pytest.mark.parametrize(("kind", "stride"), [("greedy to the end", 1), ("samples to the end", 5)])
def test_an_interrupt_as_a_request_gives_way(
    kind: str, stride: int, monkeypatch: pytest.MonkeyPatch
):
    wanted = [Wanted(kind, (1, 2, 3, 4, n), 6) for n in (1, 2)]

    def served_until_then() -> tuple[Served, list]:
        served = Served(paged(wanted, 2, 3))
        requests = [each.add(served) for each in wanted]
        served.run(num_steps)
        return served, requests

    num_steps = 0
    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "_preempt", lambda *args: 1 / 0)
        served, _ = served_until_then()
        with suppress(ZeroDivisionError):
            while True:
                served.step()
                num_steps += 1
    for number in itertools.count(1, stride):
        served, requests = served_until_then()
        if not interrupted(served, number, 1, DECIDING):
            break
        assert check_rest(served, requests, wanted) == 0
    assert number > 100
