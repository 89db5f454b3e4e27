"""Greedy decoding and n samples over a fake runner: draws, shared prefixes, batches."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import EOS, FakeRunner, Served, mixing_script, random_script

from ovgen.decoding.random import Draws
from ovgen.errors import RequestError

SCRIPT = random_script(20, scale=1.2)
PROMPT = (3, 1, 4, 1, 5, 9, 2, 6, 5)
DRAWN = {"do_sample": True, "seed": 11, "max_new_tokens": 12}

STRATEGIES = {
    "plain": {},
    "temperature and top-k": {"temperature": 0.7, "top_k": 5},
    "nucleus": {"top_p": 0.8, "min_p": 0.05},
    "nucleus alone": {"top_k": 0, "top_p": 0.7, "temperature": 1.2},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.1},
    "mirostat": {"mirostat_tau": 2.0, "mirostat_eta": 0.3},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4},
    "n-grams": {"no_repeat_ngram_size": 1, "min_new_tokens": 4},
}


def drawn_by_hand(index: int, *, seed: int = 11, most: int = 12) -> tuple[int, ...]:
    """Inverse transform sampling in double precision, with nothing of the engine's."""
    tokens: list[int] = []
    while len(tokens) < most and EOS not in tokens:
        weights = np.exp(SCRIPT((*PROMPT, *tokens)).astype(np.float64))
        bounds = np.cumsum(weights) / weights.sum()
        uniform = Draws(seed, index, len(tokens)).uniform()
        tokens.append(int((bounds <= uniform).sum()))
    return tuple(tokens)


def mirostat_by_hand(index: int, *, tau: float, eta: float) -> tuple[int, ...]:
    """Mirostat 2 in double precision: the bound of surprise follows what was drawn."""
    tokens: list[int] = []
    mu = 2 * tau
    while len(tokens) < 12 and EOS not in tokens:
        weights = np.exp(SCRIPT((*PROMPT, *tokens)).astype(np.float64))
        surprises = -np.log2(weights / weights.sum())
        weights[(surprises > mu) & (surprises > surprises.min())] = 0
        bounds = np.cumsum(weights) / weights.sum()
        tokens.append(int((bounds <= Draws(11, index, len(tokens)).uniform()).sum()))
        mu -= eta * (-np.log2(weights[tokens[-1]] / weights.sum()) - tau)
    return tuple(tokens)


def samples(count: int, served: Served | None = None, prompt=PROMPT, **options):
    served = served or Served(FakeRunner(SCRIPT))
    output = served.generate(prompt, num_return_sequences=count, **(DRAWN | options))
    served.assert_empty()
    return [completion.token_ids for completion in output.outputs]


def single(index: int, **options) -> tuple[int, ...]:
    """A request of its own, whose only sequence draws as the one with that index."""
    served = Served(FakeRunner(SCRIPT))
    request = served.add(PROMPT, **(DRAWN | options))
    request.sequences[0].index = index
    for _ in range(100):
        served.step()
        if request.is_finished:
            break
    return tuple(request.sequences[0].output_token_ids)


def test_each_sample_is_drawn_by_its_index():
    outputs = samples(6)
    assert outputs == [drawn_by_hand(index) for index in range(6)]
    assert len(set(outputs)) == 6
    assert len({len(output) for output in outputs}) > 1, "they end at their own times"


@pytest.mark.parametrize(("tau", "eta"), [(2.0, 0.5), (1.0, 1.0), (3.0, 0.1)])
def test_mirostat_goes_on_from_its_last_bound(tau: float, eta: float):
    outputs = samples(6, mirostat_tau=tau, mirostat_eta=eta)
    assert outputs == [mirostat_by_hand(index, tau=tau, eta=eta) for index in range(6)]


def test_the_seed_is_told_and_gives_the_same_again():
    served = Served(FakeRunner(SCRIPT))
    first = served.generate(PROMPT, do_sample=True, max_new_tokens=12)
    other = served.generate(PROMPT, do_sample=True, max_new_tokens=12)
    assert first.seed is not None
    assert first.seed != other.seed
    again = served.generate(PROMPT, do_sample=True, max_new_tokens=12, seed=first.seed)
    assert again.token_ids == first.token_ids == drawn_by_hand(0, seed=first.seed)
    assert served.generate(PROMPT, max_new_tokens=2).seed is None


@pytest.mark.parametrize("name", STRATEGIES)
def test_samples_equal_single_requests(name: str):
    outputs = samples(4, **STRATEGIES[name])
    assert outputs == [single(index, **STRATEGIES[name]) for index in range(4)]
    assert len(set(outputs)) > 1


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("token_budget", [1, 2, 4, 8, 9, 10])
def test_chunks_of_any_size_give_the_same_samples(name: str, token_budget: int):
    served = Served(FakeRunner(SCRIPT), token_budget=token_budget)
    assert samples(3, served, **STRATEGIES[name]) == samples(3, **STRATEGIES[name])
    prefill = [batch for batch in served.runner.batches if len(batch) == 1 and batch[0][1] < 9]
    assert max(len(tokens) for [(_, _, tokens)] in prefill) <= token_budget


@pytest.mark.parametrize("token_budget", [5, 1024])
def test_samples_share_one_prefill(token_budget: int):
    served = Served(FakeRunner(SCRIPT), token_budget=token_budget)
    outputs = samples(5, served)
    # The last token of each is never computed.
    assert served.runner.num_computed == len(PROMPT) + sum(len(o) - 1 for o in outputs)


def test_a_row_leaves_the_batch_with_its_end():
    served = Served(FakeRunner(SCRIPT))
    lengths = [len(output) for output in samples(5, served)]
    sizes = [len(batch) for batch in served.runner.batches[1:]]
    assert sizes == [sum(n > step for n in lengths) for step in range(1, max(lengths))]


def test_sixteen_requests_at_once():
    prompts = [tuple(range(number, 2 * number + 1)) for number in range(1, 17)]
    names = list(STRATEGIES)
    options = [
        DRAWN | STRATEGIES[names[n % len(names)]] | {"seed": n, "num_return_sequences": 1 + n % 3}
        for n in range(16)
    ]
    options[5] = {"max_new_tokens": 12}  # greedy among them
    alone = [
        Served(FakeRunner(SCRIPT)).generate(prompt, **o).outputs
        for prompt, o in zip(prompts, options, strict=True)
    ]
    for token_budget in (40, 1024):
        runner = FakeRunner(SCRIPT, max_running_requests=16)
        served = Served(runner, token_budget=token_budget)
        requests = [served.add(p, **o) for p, o in zip(prompts, options, strict=True)]
        assert [served.finish(request).outputs for request in requests] == alone
        assert max(len({row[0] for row in batch}) for batch in runner.batches) > 8
        served.assert_empty()


def test_chunks_name_their_sample():
    served = Served(FakeRunner(SCRIPT))
    request = served.add(PROMPT, **DRAWN, num_return_sequences=3)
    served.step()
    assert [chunk.index for chunk in served.chunks[request.request_id]] == [0, 1, 2]
    output = served.finish(request)  # which checks that the chunks of each join to its text
    assert output.metrics.num_output_tokens == sum(len(o.token_ids) for o in output.outputs)


@pytest.mark.parametrize("options", [DRAWN, DRAWN | {"mirostat_tau": 3.0}])
def test_log_probabilities_are_those_of_the_model(options):
    served = Served(FakeRunner(SCRIPT))
    request = served.add(PROMPT, **options, num_return_sequences=2, logprobs=3, temperature=0.5)
    output = served.finish(request)
    for index, completion in enumerate(output.outputs):
        tokens = PROMPT
        for item, token_id in zip(completion.logprobs, completion.token_ids, strict=True):
            row = SCRIPT(tokens).astype(np.float64)
            row -= np.log(np.exp(row).sum())
            assert item.token_id == token_id
            assert item.logprob == pytest.approx(row[token_id], abs=1e-5)
            assert item.rank == 1 + int((row > row[token_id]).sum())
            best = np.argsort(-row)[:3]
            assert [token for token, _ in item.top] == best.tolist()
            assert [logprob for _, logprob in item.top] == pytest.approx(row[best], abs=1e-5)
            tokens += (token_id,)
        chunks = [c for c in served.chunks[request.request_id] if c.index == index]
        assert sum((chunk.logprobs for chunk in chunks), ()) == completion.logprobs
        total = sum(item.logprob for item in completion.logprobs)
        assert completion.cumulative_logprob == pytest.approx(total)


def test_stop_strings_end_each_sample_by_itself():
    served = Served(FakeRunner(SCRIPT))
    plain = samples(5)
    output = served.generate(PROMPT, **DRAWN, num_return_sequences=5, stop_strings=["\x07", "\x0b"])
    for completion, tokens in zip(output.outputs, plain, strict=True):
        place = next((i for i, t in enumerate(tokens) if t in (7, 11)), None)
        if place is None:
            assert completion.token_ids == tokens
            assert completion.stop_reason in (None, EOS)
        else:
            assert completion.token_ids == tokens[: place + 1]
            assert completion.text == "".join(map(chr, tokens[:place]))
            assert completion.stop_reason == chr(tokens[place])
            assert completion.finish_reason == "stop"
    assert len({str(completion.stop_reason) for completion in output.outputs}) > 1
    served.assert_empty()


def test_greedy_with_a_processor():
    def skip(token_ids, logits):
        logits[mixing_script(tuple(token_ids))] = -1
        logits[7] = 0.5
        return logits

    output = Served().generate(PROMPT, processors=[skip], max_new_tokens=5)
    assert output.token_ids == (7,) * 5


def test_several_ending_tokens_and_the_fewest_tokens():
    served = Served(FakeRunner(random_script(4)))
    free = samples(12, served, eos_token_id=[0, 3], max_new_tokens=30)
    assert {output[-1] for output in free} == {0, 3}
    assert all(set(output[:-1]) <= {1, 2} for output in free)
    served = Served(FakeRunner(random_script(4)))
    later = samples(12, served, eos_token_id=[0, 3], max_new_tokens=30, min_new_tokens=5)
    assert {output[-1] for output in later} == {0, 3}
    assert all(len(output) >= 6 and set(output[:-1]) <= {1, 2} for output in later)


@pytest.mark.parametrize("options", [{}, DRAWN, DRAWN | {"top_k": 3}, DRAWN | {"mirostat_tau": 2}])
def test_no_token_is_left(options):
    served = Served(FakeRunner(SCRIPT))

    def forbid(token_ids, logits):
        if len(token_ids) > len(PROMPT) + 2:
            logits[:] = -np.inf
        return logits

    request = served.add(PROMPT, processors=[forbid], **({"eos_token_id": ()} | options))
    following = served.add(PROMPT, **DRAWN)
    with pytest.raises(RequestError, match="no token is left"):
        served.finish(request)
    assert sum(len(chunk.token_ids) for chunk in served.chunks[request.request_id]) == 3
    assert served.finish(following).token_ids == drawn_by_hand(0)
    served.assert_empty()
