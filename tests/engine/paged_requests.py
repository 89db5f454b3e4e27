"""Requests of every kind over blocks, what they give alone, and what has to hold of the blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from fakes import VOCAB_SIZE, FakePagedRunner, FakeRunner, Served, random_script

from ovgen.engine.request_builder import Prompt
from ovgen.engine.sequence import Request

FEW = random_script(12, scale=1.5)


@cache
def likely_script(token_ids: tuple[int, ...]):
    row = np.full(VOCAB_SIZE, -30, np.float32)
    row[:12] = FEW(token_ids)
    return row


STOPS = {"stop_strings": ["\x04", "\x05\x03", "\x07\x07"]}
SAMPLES = {"do_sample": True, "seed": 7, "num_return_sequences": 3, "logprobs": 1}
BEAMS = {"num_beams": 3, "num_return_sequences": 2, "logprobs": 1}
GUIDED = {"guidance_scale": 1.5}
SHORT, LONG = (9, 8), (9, 8, 7, 6, 5, 4, 3, 2, 1, 9, 9)
KINDS = {
    "greedy": {},
    "greedy to the end": {"eos_token_id": ()},
    "prompt logprobs": {"prompt_logprobs": 1, "logprobs": 2},
    "stop strings": STOPS,
    "sample": SAMPLES | {"num_return_sequences": 1},
    "mirostat": SAMPLES | {"num_return_sequences": 1, "mirostat_tau": 2.0},
    "samples": SAMPLES,
    "samples to the end": SAMPLES | {"num_return_sequences": 4, "eos_token_id": ()},
    "samples with prompt logprobs": SAMPLES | {"prompt_logprobs": 0},
    "samples with stop strings": SAMPLES | STOPS | {"repetition_penalty": 1.2},
    "samples with mirostat": SAMPLES | {"mirostat_tau": 2.0},
    "guided": GUIDED,
    "guided by less": GUIDED | {"negative": SHORT},
    "guided samples": GUIDED | SAMPLES | {"negative": LONG},
    "guided samples by less": GUIDED | SAMPLES | {"negative": SHORT, "eos_token_id": ()},
    "two beams": BEAMS | {"num_beams": 2},
    "beams": BEAMS,
    "beams with stop strings": BEAMS | STOPS,
    "beams with prompt logprobs": BEAMS | {"prompt_logprobs": 1},
    "drawn beams": BEAMS | {"do_sample": True, "seed": 5, "eos_token_id": ()},
    "guided beams": GUIDED | BEAMS | {"negative": LONG},
    "groups": BEAMS | {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
}


@dataclass(frozen=True)
class Wanted:
    """What is asked for; ``kind``: one of `KINDS`, or "scores" of several texts."""

    kind: str
    prompt: tuple[int, ...]
    most: int = 6
    priority: int = 0
    salt: str = ""

    @property
    def options(self) -> dict:
        return {key: v for key, v in KINDS[self.kind].items() if key != "negative"}

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """Of its rows, or its texts."""
        if self.kind == "scores":
            return [(*self.prompt, *end) for end in ((1, 2, 3), (1, 4), (2,))]
        if "guidance_scale" not in KINDS[self.kind]:
            return [self.prompt]
        return [self.prompt, KINDS[self.kind].get("negative", self.prompt[-1:])]

    @property
    def num_sequences(self) -> int:
        return max(self.options.get(name, 1) for name in ("num_beams", "num_return_sequences"))

    def num_blocks(self, size: int) -> int:
        """Blocks that it needs at the most."""
        prompts = self.prompts
        if self.kind == "scores":
            return sum(-(-len(prompt) // size) for prompt in prompts)
        shared = sum(len(prompt) // size for prompt in prompts)
        own = -(-(max(len(prompt) % size for prompt in prompts) + self.most) // size)
        return shared + self.num_sequences * len(prompts) * own

    def add(self, served: Served) -> Request:
        if self.kind == "scores":
            return served.add_scores(self.prompts, [len(self.prompt)] * 3)
        return served.add(
            Prompt(self.prompt, self.prompts[-1]),
            max_new_tokens=self.most,
            priority=self.priority,
            cache_salt=self.salt,
            **self.options,
        )

    def alone(self) -> tuple:
        """What it gives, as `result`, when there is nothing else and no blocks."""
        return _alone(self.kind, self.prompt, self.most)


@cache
def _alone(kind: str, prompt: tuple[int, ...], most: int) -> tuple:
    served = Served(FakeRunner(likely_script))
    request = Wanted(kind, prompt, most).add(served)
    served.finish(request)
    return result(served, request)


def result(served: Served, request: Request) -> tuple:
    output = served.output(request)
    assert output is not None
    scores = [s.prompt_logprobs for s in request.sequences] if not request.max_output_tokens else []
    return output.outputs, output.prompt_logprobs, output.seed, scores


def paged(wanted: Sequence[Wanted], size: int = 4, spare: int = 0, **options) -> FakePagedRunner:
    """A runner with just enough blocks for each of these alone, and some to spare."""
    num_blocks = max(each.num_blocks(size) for each in wanted) + spare
    return FakePagedRunner(likely_script, num_blocks=num_blocks, block_size=size, **options)


def check_blocks(served: Served) -> None:
    """Every block is free or has as many users as there are tables that hold it."""
    scheduler = served.engine._scheduler
    blocks = scheduler._blocks
    requests = [*scheduler._running, *scheduler._waiting]
    assert [len(set(map(id, requests)))] == [len(requests)]
    assert scheduler._waiting == sorted(
        scheduler._waiting, key=lambda r: (r.priority, r.request_id)
    )
    rows = [row for request in requests for s in request.sequences for row in s.rows]
    users = Counter(block for row in rows for block in row.block_table)
    everything = range(served.runner.num_blocks)
    assert blocks._ref_counts == [users[block] for block in everything]
    assert set(blocks._free) == {block for block in everything if not users[block]}
    assert blocks._chains.keys() <= {row.seq_id for row in rows}
    for request in scheduler._waiting:
        for sequence in request.sequences:
            assert not any(row.block_table or row.num_computed_tokens for row in sequence.rows)
    for item in served.engine._batch.scheduled if served.engine._batch else ():
        row, size = item.sequence, blocks.block_size
        if item.sequence.finish_reason is None and not item.request.is_finished:
            first, end = (
                row.num_computed_tokens,
                row.num_computed_tokens + item.num_scheduled_tokens,
            )
            written = row.block_table[first // size : -(-end // size)]
            assert all(users[block] == 1 for block in written)


def check_nothing_is_left(served: Served) -> None:
    served.assert_empty()
    blocks = served.engine._scheduler._blocks
    assert blocks.num_free == blocks.num_blocks
    assert blocks._ref_counts == [0] * blocks.num_blocks
    assert not blocks._chains


def preempted(served: Served) -> list[int]:
    """The requests that began more than once; where no prefix is found again."""
    begun: Counter[int] = Counter()
    seen = set()
    for batch in served.runner.batches:
        for request_id in {request_id for request_id, past, _ in batch if past == 0}:
            begun[request_id] += 1
        seen |= {request_id for request_id, _, _ in batch}
    return [request_id for request_id, count in begun.items() if count > 1]
