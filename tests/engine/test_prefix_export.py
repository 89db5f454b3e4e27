"""Blocks of the prefix cache, taken out and put in: whole, in parts, and where room is short."""

from __future__ import annotations

import random
import threading
from itertools import count

import numpy as np
import pytest
from fakes import CONTEXT, VOCAB_SIZE, FakeRunner, FakeTokenizer

from ovgen.engine.block_manager import BlockManager
from ovgen.engine.engine import Engine
from ovgen.engine.output_processor import OutputProcessor
from ovgen.engine.prefix_transfer import PrefixPart, PrefixTransfer
from ovgen.engine.sequence import Sequence
from ovgen.engine.service import EngineService
from ovgen.errors import ClosedError, RequestError

SIZE = 4  # tokens in a block
WIDTH = 8  # bytes of one
LAYOUT = {"block_bytes": WIDTH, "tensors": ["keys"]}
TOKENS = tuple(range(100, 130))  # seven blocks and a half
PATIENCE = 20.0


class Store:
    """The content of blocks; of none is anything written that is in use."""

    def __init__(self, num_blocks: int, layout=LAYOUT) -> None:
        self.layout = layout
        self.array = np.full((num_blocks, WIDTH), 255, np.uint8)
        self.num_written = 0

    def read(self, blocks):
        return self.array[list(blocks)]

    def write(self, blocks, content):
        self.num_written += len(blocks)
        self.array[list(blocks)] = content


class Cache:
    """A prefix cache with what is in it."""

    def __init__(self, num_blocks: int = 16, layout=LAYOUT, **options) -> None:
        self.blocks = BlockManager(num_blocks, SIZE, **options)
        self.store = Store(num_blocks, layout)
        self.ids = count()
        self.transfer = PrefixTransfer(self.blocks, self.store, self.ids)

    def compute(self, tokens, salt: bytes = b"", *, is_kept: bool = False) -> Sequence:
        sequence = Sequence(next(self.ids), tuple(tokens))
        known = self.blocks.match(sequence, len(tokens) - 1, salt)
        sequence.num_computed_tokens = known
        assert self.blocks.reserve(sequence, len(tokens) - known) is not None
        for place in range(known // SIZE, len(sequence.block_table)):
            self.store.array[sequence.block_table[place]] = content_of(tokens, place)
        sequence.num_computed_tokens = len(tokens)
        self.blocks.commit(sequence)
        if not is_kept:
            self.blocks.free(sequence)
        return sequence

    def export(self, tokens=TOKENS, start: int = 0, num_blocks: int = 100, salt: bytes = b""):
        return self.transfer.export(tokens, start, num_blocks * WIDTH, salt).content

    def adopt(self, tokens=TOKENS, start: int = 0, number: int = 7, salt: bytes = b"") -> int:
        content = np.array([content_of(tokens, start + place) for place in range(number)])
        return self.transfer.adopt(tokens, start, PrefixPart(dict(LAYOUT), content), salt)

    def num_known(self, tokens=TOKENS, salt: bytes = b"") -> int:
        """Full blocks that are found, each of which holds what it must."""
        found = self.export(tokens, salt=salt)
        for place, content in enumerate(found):
            assert (content == content_of(tokens, place)).all()
        return len(found)


def content_of(tokens, place: int) -> np.ndarray:
    return np.full(WIDTH, sum(tokens[: (place + 1) * SIZE]) % 251, np.uint8)


def test_what_was_computed_is_given_whole_and_in_parts():
    cache = Cache()
    cache.compute(TOKENS)
    whole = cache.export()
    assert whole.shape == (7, WIDTH)
    assert cache.num_known() == 7
    parts = [cache.export(start=start, num_blocks=3) for start in (0, 3, 6, 7)]
    assert [len(part) for part in parts] == [3, 3, 1, 0]
    assert (np.concatenate(parts) == whole).all()
    # One at least, however few bytes are asked for.
    assert len(cache.transfer.export(TOKENS, 2, 1, b"").content) == 1
    assert cache.blocks.num_free == cache.blocks.num_blocks


def test_only_the_beginning_that_is_the_same_is_given():
    cache = Cache()
    cache.compute(TOKENS)
    other = (*TOKENS[:13], 7, *TOKENS[14:])
    assert len(cache.export(other)) == 3
    assert len(cache.export(other, start=4)) == 0
    assert len(cache.export(TOKENS[:3])) == len(cache.export(())) == 0
    assert len(cache.export(salt=b"x")) == 0


def test_what_is_put_in_is_found():
    cache = Cache()
    assert cache.adopt() == 7
    assert cache.num_known() == 7
    assert cache.blocks.num_free == cache.blocks.num_blocks
    sequence = Sequence(next(cache.ids), TOKENS)
    assert cache.blocks.match(sequence, len(TOKENS) - 1) == 28


def test_parts_one_after_the_other():
    cache = Cache()
    assert [cache.adopt(start=start, number=2) for start in (0, 2, 4)] == [2, 4, 6]
    assert cache.adopt(start=6, number=5) == 7  # more than there are tokens for
    assert cache.num_known() == 7
    assert cache.store.num_written == 7


def test_nothing_comes_after_a_gap():
    cache = Cache()
    assert cache.adopt(start=2, number=2) == 0
    assert cache.adopt(number=1) == 1
    assert cache.adopt(start=2, number=2) == 1
    assert cache.store.num_written == 1


def test_what_is_there_is_not_put_in_twice():
    cache = Cache()
    cache.compute(TOKENS[:12])
    before = cache.store.array.copy()
    assert cache.adopt() == 7
    assert cache.store.num_written == 4
    assert cache.adopt() == 7
    assert cache.store.num_written == 4
    written = (cache.store.array != before).any(axis=1)
    assert (before[written] == 255).all()
    assert cache.num_known() == 7


def test_the_first_blocks_where_too_few_are_free():
    cache = Cache(num_blocks=8)
    running = cache.compute([9] * 18, is_kept=True)  # five blocks
    theirs = cache.store.array[running.block_table].copy()
    assert cache.adopt() == 3
    assert cache.num_known() == 3
    assert (cache.store.array[running.block_table] == theirs).all()
    assert len(running.block_table) == 5
    assert cache.blocks.num_free == 3
    full = cache.compute([8] * 12, is_kept=True)
    assert cache.adopt() == 0
    cache.blocks.free(full)
    cache.blocks.free(running)
    assert cache.adopt() == 7


def test_blocks_without_users_give_way_but_not_those_it_goes_on_from():
    cache = Cache(num_blocks=7)
    cache.compute(TOKENS[:13])  # the longest unused: the first that would be taken
    cache.compute([9] * 12)
    assert cache.adopt() == 7
    assert cache.num_known() == 7
    assert len(cache.export((9,) * 12)) == 0


def test_other_layouts_are_of_no_use():
    cache = Cache(layout={**LAYOUT, "tensors": ["other"]})
    assert cache.adopt() == 0
    assert cache.store.num_written == 0
    assert len(cache.export()) == 0


def test_salts_are_kept_apart():
    cache = Cache()
    assert cache.adopt(salt=b"a") == 7
    assert cache.num_known(salt=b"a") == 7
    assert cache.num_known() == cache.num_known(salt=b"b") == 0


def test_an_error_while_writing_leaves_nothing_to_be_found():
    cache = Cache()

    def fail(blocks, content):
        raise MemoryError

    cache.store.write = fail
    with pytest.raises(MemoryError):
        cache.adopt()
    assert cache.num_known() == 0
    assert cache.blocks.num_free == cache.blocks.num_blocks


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_done_what_is_found_is_right(seed: int):
    rng = random.Random(seed)
    cache = Cache(num_blocks=rng.randint(6, 20))
    texts = [TOKENS[: rng.randint(1, 30)] + (rng.randint(1, 3),) * 4 for _ in range(6)]
    running: list[Sequence] = []
    for _ in range(200):
        tokens, salt = rng.choice(texts), rng.choice([b"", b"s"])
        action = rng.random()
        if action < 0.3 and cache.blocks.num_free >= cache.blocks.num_blocks_for(len(tokens)) + 1:
            running.append(cache.compute(tokens, salt, is_kept=True))
        elif action < 0.5 and running:
            cache.blocks.free(running.pop(rng.randrange(len(running))))
        elif action < 0.8:
            start = rng.randint(0, 3)
            known = cache.num_known(tokens, salt)
            now = cache.adopt(tokens, start, rng.randint(0, 8), salt)
            assert known <= cache.num_known(tokens, salt) <= max(known, now)
        for sequence in running:
            for place, block in enumerate(sequence.block_table[: sequence.num_tokens // SIZE]):
                content = content_of(sequence.prompt_token_ids, place)
                assert (cache.store.array[block] == content).all()
        used = {block for sequence in running for block in sequence.block_table}
        assert cache.blocks.num_free == cache.blocks.num_blocks - len(used)
        for text in texts:
            cache.num_known(text, salt)


# The engine and its thread.


class BlockRunner(FakeRunner):
    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.num_blocks, self.block_size = 16, SIZE
        self.block_store = Store(16)


def make_engine(runner: FakeRunner, **options) -> Engine:
    return Engine(
        runner,
        OutputProcessor(FakeTokenizer(), load_time=0.0),
        context_length=CONTEXT,
        vocab_size=VOCAB_SIZE,
        token_budget=64,
        **options,
    )


PART = PrefixPart(LAYOUT, np.arange(7 * WIDTH, dtype=np.uint8).reshape(7, WIDTH))


def test_an_engine_with_blocks_takes_and_gives_them():
    engine = make_engine(BlockRunner())
    assert engine.import_prefix(TOKENS, 0, PART) == 7
    part = engine.export_prefix(TOKENS, 2, 1 << 20)
    assert part.layout == LAYOUT
    assert (part.content == PART.content[2:]).all()


@pytest.mark.parametrize(
    ("runner", "has_prefix_cache"), [(FakeRunner(), True), (BlockRunner(), False)]
)
def test_an_engine_without_a_prefix_cache_has_nothing(runner, has_prefix_cache):
    engine = make_engine(runner, has_prefix_cache=has_prefix_cache)
    assert engine.import_prefix(TOKENS, 0, PART) == 0
    assert engine.export_prefix(TOKENS, 0, 1 << 20) is None


@pytest.fixture
def service():
    made = EngineService(make_engine(BlockRunner()))
    yield made
    made.close()


def test_a_result_comes_from_the_engines_thread_without_any_request(service: EngineService):
    assert service.result_of(lambda engine: engine.import_prefix(TOKENS, 0, PART)) == 7
    assert service.result_of(lambda _: threading.current_thread().name) == "ovgen-engine"


def test_an_error_is_its_callers(service: EngineService):
    with pytest.raises(ZeroDivisionError):
        service.result_of(lambda _: 1 // 0)
    assert service.result_of(lambda _: None) is None


def test_a_result_that_a_closed_service_owes(service: EngineService):
    has_begun, may_end = threading.Event(), threading.Event()
    got: list[object] = []

    def ask(task) -> None:
        try:
            got.append(service.result_of(task))
        except ClosedError as exc:
            got.append(exc)

    def wait(_) -> str:
        has_begun.set()
        assert may_end.wait(PATIENCE)
        return "done"

    threads = [threading.Thread(target=ask, args=[wait])]
    threads[0].start()
    assert has_begun.wait(PATIENCE)
    threads += [threading.Thread(target=ask, args=[lambda _: "too late"]) for _ in range(3)]
    threads += [threading.Thread(target=service.close)]
    for thread in threads[1:]:
        thread.start()
    threads[-1].join(0.2)
    may_end.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert got.count("done") == 1
    assert len(got) == 4
    with pytest.raises(ClosedError):
        service.result_of(lambda _: None)


def test_the_engines_own_thread_is_refused(service: EngineService):
    with pytest.raises(RequestError, match="must not use the LLM"):
        service.result_of(lambda _: service.result_of(lambda _: None))
