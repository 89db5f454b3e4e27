"""From logits to choices: log-probabilities of prompts, guidance, and whose errors are whose."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import EOS, VOCAB_SIZE, FakeRunner, Served, continuation, random_script

from ovgen.engine.request_builder import Prompt
from ovgen.errors import RequestError

SCRIPT = random_script(VOCAB_SIZE)
PROMPT = tuple(range(30, 50))
DRAWN = {"do_sample": True, "seed": 3}
STRATEGIES = {
    "greedy": {},
    "samples": DRAWN | {"num_return_sequences": 3},
    "beams": {"num_beams": 3},
}
strategies = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def log_softmax(row: np.ndarray) -> np.ndarray:
    row = row.astype(np.float64)
    return row - np.log(np.exp(row - row.max()).sum()) - row.max()


def logprobs_by_hand(tokens, first: int = 1) -> list[float]:
    return [
        log_softmax(SCRIPT(tuple(tokens[:place])))[tokens[place]]
        for place in range(first, len(tokens))
    ]


@strategies
def test_log_probabilities_of_a_prompt(strategy):
    served = Served(FakeRunner(SCRIPT))
    options = {"max_new_tokens": 3} | strategy
    output = served.generate(PROMPT, prompt_logprobs=2, **options)
    first, *items = output.prompt_logprobs
    assert first is None
    assert [item.token_id for item in items] == list(PROMPT[1:])
    assert [item.logprob for item in items] == pytest.approx(logprobs_by_hand(PROMPT), abs=1e-4)
    for place, item in enumerate(items, start=1):
        row = SCRIPT(PROMPT[:place])
        assert [token for token, _ in item.top] == np.argsort(-row)[:2].tolist()
    plain = served.generate(PROMPT, **options)
    assert plain.prompt_logprobs is None
    assert plain.outputs == output.outputs


@pytest.mark.parametrize("logits_budget", [1, 3, 7, 20, 21])
@pytest.mark.parametrize("token_budget", [2, 1024])
def test_rows_of_logits_are_bounded(logits_budget: int, token_budget: int):
    wanted = Served(FakeRunner(SCRIPT)).generate(PROMPT, prompt_logprobs=1, max_new_tokens=4)
    served = Served(FakeRunner(SCRIPT), token_budget=token_budget, logits_budget=logits_budget)
    output = served.generate(PROMPT, prompt_logprobs=1, max_new_tokens=4)
    assert output.prompt_logprobs == wanted.prompt_logprobs
    assert output.outputs == wanted.outputs
    assert max(served.runner.num_logits) <= min(logits_budget, token_budget)
    assert sum(served.runner.num_logits) == len(PROMPT) - 1 + 4, "one of them is of both kinds"


def test_a_prompt_of_one_token_has_nothing_to_tell():
    output = Served(FakeRunner(SCRIPT)).generate([5], prompt_logprobs=1, max_new_tokens=2)
    assert output.prompt_logprobs == (None,)


def test_plain_requests_ask_for_a_row_a_token():
    served = Served(FakeRunner(SCRIPT), token_budget=6)
    served.generate(PROMPT, max_new_tokens=4)
    assert served.runner.num_logits == [0, 0, 0, 1, 1, 1, 1]


def scored(served: Served, texts, num_context):
    request = served.add_scores(texts, num_context)
    output = served.finish(request)
    served.assert_empty()
    assert all(completion.token_ids == () for completion in output.outputs)
    assert [sequence.prompt_token_ids for sequence in request.sequences] == texts
    return [
        [item.logprob for item in s.prompt_logprobs[context - 1 - request.score_from :]]
        for s, context in zip(request.sequences, num_context, strict=True)
    ]


@pytest.mark.parametrize("budgets", [(1024, 1024), (3, 1024), (1024, 4), (1, 1)])
@pytest.mark.parametrize("lengths", [(3,), (1, 1), (5, 1, 3), (2, 9, 2, 4)])
def test_scores_compute_what_is_shared_once(budgets, lengths):
    texts = [(*PROMPT, *range(length, 3 * length)) for length in lengths]
    served = Served(FakeRunner(SCRIPT), token_budget=budgets[0], logits_budget=budgets[1])
    logprobs = scored(served, texts, [len(PROMPT)] * len(texts))
    for text, values in zip(texts, logprobs, strict=True):
        assert values == pytest.approx(logprobs_by_hand(text, len(PROMPT)), abs=1e-4)
    # The token before the first that is scored once for each, and none of the last ones.
    rests = [len(text) - len(PROMPT) for text in texts]
    assert served.runner.num_computed == len(PROMPT) - 1 + sum(rests)
    if len(texts) > 1 or budgets[1] > 1:
        assert max(served.runner.num_logits) <= max(budgets[1], len(texts))


@pytest.mark.parametrize(
    ("texts", "num_context"),
    [
        ([(1, 2, 3), (4, 5)], [1, 1]),  # nothing in common
        ([(1, 2, 3, 4), (1, 5, 3)], [2, 2]),  # less than their contexts
        ([(1, 2, 3), (1, 2, 3)], [1, 2]),  # all
        ([(1, 2, 3, 4, 5)], [2]),
        ([(1, 2), (1, 2, 3, 4, 5, 6)], [1, 1]),
    ],
)
def test_scores_of_any_texts(texts, num_context):
    logprobs = scored(Served(FakeRunner(SCRIPT)), texts, num_context)
    for text, context, values in zip(texts, num_context, logprobs, strict=True):
        assert values == pytest.approx(logprobs_by_hand(text, context), abs=1e-4)


@pytest.mark.parametrize("where", ["start_errors", "wait_errors"])
@pytest.mark.parametrize("number", range(7))
def test_scores_after_an_error_in_any_step(where: str, number: int):
    texts = [(*PROMPT, 1, 2, 3), (*PROMPT, 4), (*PROMPT, 5, 6, 7, 8)]
    runner = FakeRunner(SCRIPT, **{where: {number: RuntimeError("device lost")}})
    served = Served(runner, token_budget=5)
    request = served.add_scores(texts, [20, 20, 20])
    with pytest.raises(RuntimeError):
        served.run(100)
    served.engine.recover()
    served.finish(request)
    for sequence, text in zip(request.sequences, texts, strict=True):
        values = [item.logprob for item in sequence.prompt_logprobs]
        assert values == pytest.approx(logprobs_by_hand(text, 20), abs=1e-4)
    served.assert_empty()


def guided_by_hand(prompt, negative, scale: float, most: int) -> tuple[int, ...]:
    tokens = ()
    for _ in range(most):
        wanted, other = (log_softmax(SCRIPT((*t, *tokens))) for t in (prompt, negative))
        tokens += (int((other + scale * (wanted - other)).argmax()),)
    return tokens


@pytest.mark.parametrize("negative", [None, (7,), (7,) * 5, (7,) * 20, (7,) * 33])
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("token_budget", [1, 3, 12, 1024])
def test_guidance_moves_two_rows_in_lockstep(negative, scale: float, token_budget: int):
    served = Served(FakeRunner(SCRIPT), token_budget=token_budget)
    options = {"guidance_scale": scale, "max_new_tokens": 6, "eos_token_id": ()}
    output = served.generate(Prompt(PROMPT, negative), **options)
    negative = PROMPT[-1:] if negative is None else negative
    assert output.token_ids == guided_by_hand(PROMPT, negative, scale, 6)
    # The longer one begins, the other joins it (the runner checks that their ends are aligned).
    sizes = [len(batch) for batch in served.runner.batches]
    assert sizes == sorted(sizes)
    assert sizes[-5:] == [2] * 5
    assert served.runner.num_computed == len(PROMPT) + len(negative) + 2 * 5
    assert sum(served.runner.num_logits) == 12
    served.assert_empty()


@pytest.mark.parametrize("strategy", [STRATEGIES["samples"], STRATEGIES["beams"]])
@pytest.mark.parametrize("negative", [(7,), (7,) * 25])
def test_guided_sequences_fork_with_their_negatives(strategy, negative):
    options = {"guidance_scale": 2.0, "max_new_tokens": 6, "eos_token_id": ()} | strategy
    wanted = Served(FakeRunner(SCRIPT)).generate(Prompt(PROMPT, negative), **options).outputs
    served = Served(FakeRunner(SCRIPT), token_budget=4)
    assert served.generate(Prompt(PROMPT, negative), **options).outputs == wanted
    assert served.runner.num_computed == len(PROMPT) + len(negative) + 2 * 3 * 5


def test_guidance_by_1_is_none():
    served = Served(FakeRunner(SCRIPT))
    output = served.generate(Prompt(PROMPT, (7,)), guidance_scale=1, max_new_tokens=5)
    assert list(output.token_ids) == continuation(PROMPT, 5, lambda t: int(SCRIPT(t).argmax()))
    assert {len(batch) for batch in served.runner.batches} == {1}


def fail_after(length: int):
    def process(token_ids, logits):
        if len(token_ids) > length:
            raise ZeroDivisionError("of the user's")
        return logits

    return process


@strategies
@pytest.mark.parametrize("max_running_requests", [1, 4])
def test_a_processor_that_raises_ends_its_own_request_alone(strategy, max_running_requests: int):
    runner = FakeRunner(SCRIPT, max_running_requests=max_running_requests)
    served = Served(runner)
    options = {"max_new_tokens": 6, "eos_token_id": ()} | strategy
    wanted = Served(FakeRunner(SCRIPT)).generate(PROMPT, **options).outputs
    before = served.add(PROMPT, **options)
    failing = served.add(PROMPT, processors=[fail_after(len(PROMPT) + 2)], **options)
    after = served.add(PROMPT, **options)
    with pytest.raises(RequestError, match="ZeroDivisionError: of the user's") as caught:
        served.finish(failing)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not served.engine.is_known(failing)
    assert [served.finish(request).outputs for request in (before, after)] == [wanted, wanted]
    assert runner.num_resets == 0
    served.assert_empty()


@pytest.mark.parametrize(
    "result", [None, np.zeros(3, np.float32), np.zeros((1, VOCAB_SIZE)), "logits"]
)
def test_a_processor_that_gives_no_logits(result):
    served = Served(FakeRunner(SCRIPT))
    with pytest.raises(RequestError, match="a logits processor failed"):
        served.generate(PROMPT, processors=[lambda token_ids, logits: result])
    served.assert_empty()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("strategy", [{}, DRAWN], ids=["greedy", "drawn"])
def test_a_processor_that_overflows(value: float, strategy):
    def overflow(token_ids, logits):
        logits[5] = value
        return logits

    served = Served(FakeRunner(SCRIPT))
    with pytest.raises(RequestError, match=f"the logits hold {value}"):
        served.generate(PROMPT, processors=[overflow], **strategy)


def test_a_processor_may_give_a_new_array_but_not_change_the_tokens():
    def skip(token_ids, logits):
        with pytest.raises(ValueError, match="read-only"):
            token_ids[0] = 9
        return np.where(np.arange(VOCAB_SIZE) == EOS + 7, 0.0, -1.0)

    output = Served(FakeRunner(SCRIPT)).generate(PROMPT, processors=[skip], max_new_tokens=2)
    assert output.token_ids == (7, 7)


def test_an_interrupt_in_a_processor_is_not_its_failure():
    calls = []

    def interrupted(token_ids, logits):
        calls.append(len(token_ids))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return logits

    served = Served(FakeRunner(SCRIPT))
    request = served.add(PROMPT, processors=[interrupted], max_new_tokens=4)
    with pytest.raises(KeyboardInterrupt):
        served.finish(request)
    served.engine.recover()
    wanted = continuation(PROMPT, 4, lambda t: int(SCRIPT(t).argmax()))
    assert list(served.finish(request).token_ids) == wanted
    assert calls == [20, 21, 22, 22, 23]


def test_of_rows_drawn_together_one_that_overflows_fails_alone():
    def overflowing(token_ids):
        row = SCRIPT(token_ids)
        return np.full_like(row, np.nan) if token_ids[0] == 7 and len(token_ids) > 5 else row

    options = DRAWN | {"top_k": 0, "top_p": 0.9, "max_new_tokens": 6, "eos_token_id": ()}
    prompts = [(first, 5) for first in (4, 7, 9, 3, 2, 6, 8, 10, 11)]
    alone = [Served(FakeRunner(SCRIPT)).generate(prompt, **options) for prompt in prompts]
    served = Served(FakeRunner(overflowing, max_running_requests=9))
    requests = [served.add(prompt, **options) for prompt in prompts]
    with pytest.raises(RequestError, match="the logits hold nan"):
        served.finish(requests[1])
    for place in (0, *range(2, 9)):
        assert served.finish(requests[place]).outputs == alone[place].outputs
    assert max(map(len, served.runner.batches)) == 9
    served.assert_empty()


def test_rows_drawn_together_are_drawn_as_alone():
    """Some of a batch's requests draw from the whole or by top-p, others in another way."""
    whole = {"top_k": 0}
    kinds = [{"top_p": 0.9}, {"top_k": 5}, {"temperature": 0.7}, {"min_p": 0.1}, {}]
    options = [
        DRAWN | whole | kinds[number % 5] | {"seed": number, "max_new_tokens": 4 + number % 3}
        for number in range(20)
    ]
    prompts = [(number + 1, 40) for number in range(20)]
    alone = [
        Served(FakeRunner(SCRIPT)).generate(prompt, **one).outputs
        for prompt, one in zip(prompts, options, strict=True)
    ]
    served = Served(FakeRunner(SCRIPT, max_running_requests=20))
    requests = [served.add(p, **one) for p, one in zip(prompts, options, strict=True)]
    assert [served.finish(request).outputs for request in requests] == alone
