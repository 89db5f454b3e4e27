"""What is asked of the engines."""

from __future__ import annotations

import pytest

from ovgen.bench.figures import CHAT, THROUGHPUT, TPOT, TTFT, Figure
from ovgen.bench.workloads import (
    MAX_CONTEXT,
    NEW_TOKENS,
    SEQUENTIAL_REQUESTS,
    WORKLOADS,
    LatencyCase,
    PrefixCase,
    Prompts,
    ThroughputCase,
    make_workloads,
)
from ovgen.cli import bench as command
from ovgen.errors import ConfigError

PROMPTS = Prompts(320)


class Asked:
    """An engine that takes 2 s for everything."""

    def __init__(self):
        self.jobs = []

    def __call__(self, job):
        self.jobs.append(job)
        if job["job"] == "one":
            return {"ttft": 2.0, "tpot": 0.5, "token_ids": [7] * job["new_tokens"]}
        return {"tokens": sum(job["new_tokens"]), "seconds": 2.0}


def run(case, round_=0, has_batches=True):
    asked = Asked()
    return case.run(asked, PROMPTS, round_, has_batches=has_batches), asked.jobs


def test_the_command_knows_them():
    assert command.WORKLOADS == WORKLOADS


def test_prompts_are_the_same_in_every_run_and_differ_between_rounds():
    assert PROMPTS.make(50, "a", 1) == Prompts(320).make(50, "a", 1)
    assert PROMPTS.make(50, "a", 1) != PROMPTS.make(50, "a", 2)
    assert {len(PROMPTS.make(count, "a")) for count in (1, 32)} == {1, 32}


@pytest.mark.parametrize(("vocab_size", "lowest"), [(320, 80), (50_000, 1000)])
def test_prompts_are_within_the_vocabulary(vocab_size, lowest):
    token_ids = Prompts(vocab_size).make(100_000, "a")
    assert lowest <= min(token_ids) < lowest + 50
    assert vocab_size - 50 < max(token_ids) < vocab_size


def test_latency():
    found, [job] = run(LatencyCase(512))
    assert found == {Figure(TTFT, "512 tokens", "s"): 2.0,
                     Figure(TPOT, "after 512 tokens", "s"): 0.5}  # fmt: skip
    assert (len(job["prompt"]), job["new_tokens"]) == (512, NEW_TOKENS)
    assert run(LatencyCase(512), round_=1)[1][0]["prompt"] != job["prompt"]


def test_throughput():
    case = ThroughputCase(64, 4096)
    found, [job] = run(case)
    lengths = [len(prompt) for prompt in job["prompts"]]
    assert found == {Figure(THROUGHPUT, "64 at a time", "tokens/s"): sum(job["new_tokens"]) / 2}
    assert len(lengths) == len(job["new_tokens"]) == 64
    assert 32 <= min(lengths) < 100 < 400 < max(lengths) <= 512
    assert 16 <= min(job["new_tokens"]) < 50 < 200 < max(job["new_tokens"]) <= 256
    _, [other] = run(case, round_=1)
    assert other["new_tokens"] == job["new_tokens"]
    assert [len(prompt) for prompt in other["prompts"]] == lengths
    assert other["prompts"] != job["prompts"]


def test_throughput_of_an_engine_that_serves_one_at_a_time():
    batch = run(ThroughputCase(64, 4096))[1][0]
    sequential = run(ThroughputCase(64, 4096), has_batches=False)[1][0]
    assert sequential["prompts"] == batch["prompts"][:SEQUENTIAL_REQUESTS]
    assert sequential["new_tokens"] == batch["new_tokens"][:SEQUENTIAL_REQUESTS]


def test_the_second_turn_begins_with_the_first_one_and_its_reply():
    found, [first, second] = run(PrefixCase(2000))
    assert [figure.label for figure in found] == [
        "first turn, 2000 tokens", "second turn, 2064 tokens",
    ]  # fmt: skip
    assert {figure.group for figure in found} == {CHAT}
    assert second["prompt"][:2000] == first["prompt"]
    assert second["prompt"][2000:2032] == [7] * 32
    assert second["prompt"][2032:] != first["prompt"][:32]


@pytest.mark.parametrize("context_length", [97, 128, 256, 700, 2112, 8192, 1 << 20])
def test_everything_fits_into_the_context(context_length):
    for workload in make_workloads(context_length):
        for case in (*workload.cases, *workload.warm_up):
            for job in run(case)[1]:
                prompts = job.get("prompts") or [job["prompt"]]
                new = job["new_tokens"] if "prompts" in job else [job["new_tokens"]]
                longest = max(len(prompt) + more for prompt, more in zip(prompts, new, strict=True))
                assert longest <= min(context_length, MAX_CONTEXT)
                assert min(map(len, prompts)) > 0


def test_workloads_of_a_long_context():
    latency, throughput, prefix = make_workloads(8192)
    assert [case.num_prompt for case in latency.cases] == [32, 512, 2048]
    assert [case.concurrency for case in throughput.cases] == [1, 4, 16, 64]
    assert [case.num_history for case in prefix.cases] == [2000]
    assert {one.name for one in (latency, throughput, prefix)} < set(WORKLOADS)


def test_a_context_that_is_too_short():
    with pytest.raises(ConfigError, match="context of 95 tokens is too short"):
        make_workloads(95)
