"""Combinations of generation options in transformers: greedy tokens, and three beams.

Options are drawn one after the other, each so that it acts on what those before it produce. Kept is
a combination of which no option can be left out without another greedy result, and whose results
noise in the logits does not change. Of equal scores, which several forced EOS ids have, torch.topk
takes any: it is made stable, after checking that the plain one gives the same scores. Also greedy
output that stop strings end. Writes tests/data/combined_options.json.

    python tests/oracles/combined_options.py [--only llama stop_strings]
"""

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from beam_search import NOISE, NOISE_SEEDS, noise, until_eos, write
from tiny_models import SPECIAL, VOCAB, build
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerFast

TESTS = Path(__file__).parents[1]
DATA = TESTS / "data"
PATH = DATA / "combined_options.json"
TINY = ("llama", "qwen2", "opt")
COMBINATIONS = 60
BEAMS = 3
MAX_GUIDED = 10  # of the combinations
MODEL_EOS = 2
MIN_EFFECT = 0.8  # of the beam searches, no option can be left out either
MIN_ORDER = 0.5  # of the combinations, two neighbours in the order cannot change places
DRAWS = 6  # of an option's value
LENGTHS = ("max_new_tokens", "max_length")
STOPS = 25
STOP_TOKENS = 24

Options = dict[str, Any]
Generator = np.random.Generator


def generate(
    model: PreTrainedModel, prompt: list[int], options: Options, **more: Any
) -> tuple[list[list[int]], list[float], bool]:
    """Generated sequences, their scores (of beams) and whether all logits are in order."""
    options = dict(options)
    negative = options.pop("negative_prompt", None)
    if negative is not None:
        options["negative_prompt_ids"] = torch.tensor(negative)[None]
        options["negative_prompt_attention_mask"] = torch.ones(1, len(negative), dtype=torch.long)
    result = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
        **more,
    )
    eos = options.get("eos_token_id", [MODEL_EOS])
    sequences = [until_eos(row, eos) for row in result.sequences[:, len(prompt) :].tolist()]
    logits = torch.stack(result.scores)
    in_order = not logits.isnan().any() and bool((logits.amax(-1) > -torch.inf).all())
    scores = result.sequences_scores.tolist() if "sequences_scores" in result else []
    return sequences, scores, in_order


def greedy(model: PreTrainedModel, prompt: list[int], options: Options) -> list[int]:
    return generate(model, prompt, options)[0][0]


@contextmanager
def stable_topk() -> Iterator[None]:
    """Within it the first of equal values come first in torch.topk."""
    original = torch.topk

    def topk(values: torch.Tensor, k: int, dim: int = -1, **_: Any) -> tuple:
        ordered, indices = torch.sort(values, dim=dim, descending=True, stable=True)
        return torch.return_types.topk((ordered.narrow(dim, 0, k), indices.narrow(dim, 0, k)))

    torch.topk = topk
    try:
        yield
    finally:
        torch.topk = original


def search(
    model: PreTrainedModel, prompt: list[int], options: Options
) -> tuple[list[list[int]], list[float], bool]:
    with stable_topk():
        return generate(model, prompt, options, num_beams=BEAMS, num_return_sequences=BEAMS)


def beams(model: PreTrainedModel, prompt: list[int], options: Options) -> list[list[int]]:
    return search(model, prompt, options)[0]


class Draw:
    """Draws an option's value so that it acts on `tokens`, the output under the options so far.

    Each method is named as its option and gives None where there is no such value.
    """

    def __init__(
        self, generator: Generator, prompt: list[int], wanted: set[str], limit: int, pool: list[int]
    ) -> None:
        self.generator = generator
        self.prompt = prompt
        self.wanted = wanted
        self.limit = limit
        self.pool = pool
        self.tokens: list[int] = []
        self.options: Options = {}

    def chance(self, share: float) -> bool:
        return bool(self.generator.random() < share)

    def one(self, values: list[int]) -> int:
        return int(self.generator.choice(values))

    def some(self, values: list[int], least: int, most: int) -> list[int]:
        distinct = sorted(set(values) - {self.options.get("forced_bos_token_id")})
        count = min(len(distinct), int(self.generator.integers(least, most + 1)))
        return self.generator.permutation(distinct)[:count].tolist()

    def number(self, low: float, high: float) -> float:
        return round(float(self.generator.uniform(low, high)), 2)

    def piece(self, size: int) -> list[int]:
        """Tokens that stand in a row in the output."""
        start = self.generator.integers(0, max(len(self.tokens) - size, 0) + 1)
        return self.tokens[start : start + size]

    def forced_bos_token_id(self) -> int:
        return self.one(self.prompt if self.chance(0.3) else self.pool)

    def guidance_scale(self) -> float:
        return self.number(1.3, 3)

    def negative_prompt(self) -> list[int]:
        size = int(self.generator.integers(2, 16))
        return self.generator.integers(len(SPECIAL), VOCAB, size).tolist()

    def repetition_penalty(self) -> float:
        return self.number(0.6, 0.9) if self.chance(0.3) else self.number(1.2, 2.2)

    def sequence_bias(self) -> list:
        seen = self.prompt + self.tokens
        kinds: list[Callable[[], tuple[list[int], float]]] = [
            lambda: (self.piece(1), self.number(-6, -1)),
            lambda: ([self.one(seen)], self.number(1, 4)),
            lambda: ([self.one(self.pool)], self.number(1, 4)),
            lambda: (self.piece(2), self.number(-8, -2)),
            lambda: ([*self.piece(1), self.one(seen)], self.number(4, 10)),
            lambda: ([*self.piece(2), self.one(self.pool)], self.number(4, 10)),
            lambda: (self.piece(3), self.number(-8, -2)),
        ]
        count = int(self.generator.integers(2, 5))
        entries = [kinds[i]() for i in self.generator.permutation(len(kinds))[:count]]
        found = {tuple(ids): bias for ids, bias in entries if ids}
        return [[list(ids), bias] for ids, bias in found.items()]

    def begin_suppress_tokens(self) -> list[int]:
        position = int("forced_bos_token_id" in self.wanted)
        first = self.tokens[position : position + 1]
        return self.some([*first, *self.some(self.pool, 0, 2)], 3, 3) or None

    def suppress_tokens(self) -> list[int]:
        return self.some(self.tokens, 1, 3) or None

    def bad_words_ids(self) -> list[list[int]]:
        words = [self.some(self.tokens, 1, 1), self.piece(2), self.piece(3), self.piece(2)]
        chosen = [words[i] for i in self.generator.permutation(4)[: 1 + self.one([0, 1, 2])]]
        forced = [self.options.get("forced_bos_token_id")]
        return [list(word) for word in {tuple(w) for w in chosen if w and w != forced}] or None

    def no_repeat_ngram_size(self) -> int | None:
        """The longest n-gram that is there twice."""
        seen = self.prompt + self.tokens
        for size in (3, 2, 1):
            ngrams = [tuple(seen[i : i + size]) for i in range(len(seen) - size + 1)]
            if len(set(ngrams)) < len(ngrams):
                return size
        return None

    def eos_token_id(self) -> list[int] | None:
        if len(self.tokens) < 5:
            return None
        ending = self.one(self.tokens[2:])
        banned = self.options.get("suppress_tokens", [])
        others = [token for token in self.pool if token not in (ending, *banned)]
        found = [ending, *self.some(others, 1, 3)]
        if "bad_words_ids" in self.options and self.chance(0.5):
            # It is let through; a list, so that it cannot make the option matter.
            self.options["bad_words_ids"] = [*self.options["bad_words_ids"], [ending]]
        return found

    def min_new_tokens(self) -> int | None:
        length = len(self.tokens)
        if length == self.limit:
            return None
        if "forced_eos_token_id" in self.wanted and self.chance(0.5):
            return self.limit
        return int(self.generator.integers(length + 1, self.limit + 1))

    def min_length(self) -> int | None:
        length = self.min_new_tokens()
        return None if length is None else len(self.prompt) + length

    def exponential_decay_length_penalty(self) -> list:
        least = self.options.get("min_new_tokens", 0)
        least = max(least, self.options.get("min_length", 0) - len(self.prompt))
        start = max(least - 1, 0) + int(self.generator.integers(0, 4))
        return [start, self.number(1.05, 1.8)]

    def forced_eos_token_id(self) -> int | list[int] | None:
        banned = set(self.options.get("suppress_tokens", []))
        banned |= {w[0] for w in self.options.get("bad_words_ids", []) if len(w) == 1}
        banned |= {self.options.get("forced_bos_token_id")}
        kind = self.pool
        if "eos_token_id" in self.options and self.chance(0.5):
            kind = self.options["eos_token_id"]
        found = self.some([token for token in kind if token not in banned], 1, 2)
        if not found or len(self.tokens) < self.limit:
            return None
        return found[0] if len(found) == 1 else found


# In the order in which they are drawn: those that end the output come last.
DRAWN = (
    *("forced_bos_token_id", "guidance_scale", "negative_prompt", "repetition_penalty"),
    *("sequence_bias", "begin_suppress_tokens", "suppress_tokens", "bad_words_ids"),
    *("no_repeat_ngram_size", "eos_token_id", "min_new_tokens", "min_length"),
    *("exponential_decay_length_penalty", "forced_eos_token_id"),
)
GUIDANCE = {"guidance_scale", "negative_prompt"}
# min_length takes the place of min_new_tokens in half of the combinations.
FREE = [name for name in DRAWN if name not in GUIDANCE | {"min_length"}]
KINDS: list[set[str]] = [  # what a combination has in any case
    set(),
    GUIDANCE | {"repetition_penalty"},
    {"sequence_bias", "repetition_penalty"},
    {"exponential_decay_length_penalty"},
]


def wanted_options(generator: Generator, with_guidance: bool) -> set[str]:
    kind = generator.choice(len(KINDS), p=[0.35, 0.2, 0.2, 0.25])
    wanted = KINDS[2 if kind == 1 and not with_guidance else kind]
    count = int(generator.integers(1, 3) if wanted else generator.integers(3, 6))
    wanted = wanted | {FREE[i] for i in generator.permutation(len(FREE))[:count]}
    if wanted & {"min_new_tokens", "exponential_decay_length_penalty"}:
        wanted.add("eos_token_id")
    if "min_new_tokens" in wanted and generator.random() < 0.5:
        wanted = wanted - {"min_new_tokens"} | {"min_length"}
    return wanted


def combination(
    model: PreTrainedModel, generator: Generator, with_guidance: bool
) -> tuple[list[int], Options] | None:
    """A prompt and options, or None if one of them finds nothing to act on."""
    wanted = wanted_options(generator, with_guidance)
    is_short = "forced_bos_token_id" in wanted
    size = 1 if is_short else int(generator.integers(3, 10))
    prompt = generator.integers(len(SPECIAL), VOCAB, size).tolist()
    limit = int(generator.integers(9, 15))
    length = {"max_new_tokens": limit}
    if generator.random() < 0.4:
        length = {"max_length": size + limit}
    with_beams = "guidance_scale" not in wanted
    plain = [greedy(model, prompt, length), *beams(model, prompt, length)]
    pool = sorted({token for row in plain for token in row} - set(range(len(SPECIAL))))
    draw = Draw(generator, prompt, wanted, limit, pool)
    draw.options, draw.tokens = length, plain[0]
    rows = plain[1:]
    for name in (name for name in DRAWN if name in wanted):
        before = draw.options
        for _ in range(DRAWS):
            draw.options = before
            if min(draw.tokens) < len(SPECIAL):  # transformers has no biases of token 0
                return None
            value = getattr(draw, name)()
            if value is None:
                continue
            draw.options = draw.options | {name: value}
            tokens = greedy(model, prompt, draw.options)
            if tokens == draw.tokens:
                continue
            changed = beams(model, prompt, draw.options) if with_beams else []
            if not with_beams or changed != rows:
                draw.tokens, rows = tokens, changed
                break
        else:
            return None
    return prompt, draw.options


def reduced(options: Options) -> Iterator[Options]:
    """The options without one of them."""
    for name in options.keys() - set(LENGTHS):
        left = {key: value for key, value in options.items() if key != name}
        if name == "guidance_scale":
            del left["negative_prompt"]
        yield left


@contextmanager
def swapped(model: PreTrainedModel, first: int, names: list[str]) -> Iterator[None]:
    """Two processors in each other's place; gives the names of all of them in their own order."""
    original = model._get_logits_processor

    def swap(*arguments: Any, **more: Any) -> LogitsProcessorList:
        processors = list(original(*arguments, **more))
        names[:] = [type(processor).__name__ for processor in processors]
        processors[first : first + 2] = processors[first : first + 2][::-1]
        return LogitsProcessorList(processors)

    model._get_logits_processor = swap
    try:
        yield
    finally:
        del model._get_logits_processor


def ordered_pairs(
    model: PreTrainedModel, prompt: list[int], options: Options, tokens: list[int]
) -> list[tuple[str, str]]:
    """The neighbours in the order of processors that cannot change places."""
    found, names = [], [""] * len(options)
    first = 0
    while first < len(names) - 1:
        with swapped(model, first, names):
            if greedy(model, prompt, options) != tokens and first < len(names) - 1:
                found.append((names[first], names[first + 1]))
        first += 1
    return found


def is_robust(model: PreTrainedModel, prompt: list[int], options: Options, record: dict) -> bool:
    for seed in NOISE_SEEDS:
        with noise(model, NOISE, seed):
            if greedy(model, prompt, options) != record["tokens"]:
                return False
            if "sequences" in record and beams(model, prompt, options) != record["sequences"]:
                return False
    return True


def attempt(
    model: PreTrainedModel,
    generator: Generator,
    counts: Counter,
    need_order: bool,
    need_effect: bool,
) -> dict[str, Any] | None:
    """The record of a random combination, or None if it tests too little or is not robust."""
    drawn = combination(model, generator, counts["with guidance_scale"] < MAX_GUIDED)
    if drawn is None:
        counts["nothing to act on"] += 1
        return None
    prompt, options = drawn
    rows, _, in_order = generate(model, prompt, options)
    tokens = rows[0]
    if not in_order:
        counts["NaN, or everything forbidden"] += 1
        return None
    for left in reduced(options):
        if greedy(model, prompt, left) == tokens:
            counts[f"without effect: {min(options.keys() - left.keys())}"] += 1
            return None
    pairs = ordered_pairs(model, prompt, options, tokens)
    if need_order and not pairs:
        counts["any order"] += 1
        return None
    record = {"prompt": prompt, "options": options, "tokens": tokens}
    if "guidance_scale" not in options:
        sequences, scores, in_order = search(model, prompt, options)
        if not in_order or scores[-1] < -1e6:
            counts["NaN, or everything forbidden, in beams"] += 1
            return None
        plain = generate(model, prompt, options, num_beams=BEAMS, num_return_sequences=BEAMS)
        assert np.allclose(scores, plain[1], rtol=0, atol=1e-5), (prompt, options)
        counts["equal scores"] += plain[0] != sequences
        others = (beams(model, prompt, left) for left in reduced(options))
        has_effect = all(other != sequences for other in others)
        if need_effect and not has_effect:
            counts["an option without effect on beams"] += 1
            return None
        record |= {"sequences": sequences, "scores": [round(score, 6) for score in scores]}
    if not is_robust(model, prompt, options, record):
        counts["not robust"] += 1
        return None
    counts["order"] += bool(pairs)
    counts.update(" before ".join(pair) for pair in pairs)
    counts.update(f"with {name}" for name in options)
    if "sequences" in record:
        counts["beams"] += 1
        counts["every option matters to beams"] += has_effect
    return record


def record_combinations(name: str) -> dict[str, Any]:
    model = build(name, json.loads((DATA / "tiny_models.json").read_text())[name]["seed"])
    generator = np.random.default_rng(sum(map(ord, name)))
    counts: Counter = Counter()
    records: list[dict[str, Any]] = []
    while len(records) < COMBINATIONS:
        unordered = len(records) - counts["order"]
        need_order = unordered >= (1 - MIN_ORDER) * COMBINATIONS
        without_effect = counts["beams"] - counts["every option matters to beams"]
        need_effect = without_effect >= (1 - MIN_EFFECT) * counts["beams"]
        record = attempt(model, generator, counts, need_order, need_effect)
        if record is not None:
            records.append(record)
            print(f"{name}: {len(records)}, order {counts['order']}", flush=True)
    print(f"{name}: {len(records)} combinations, {dict(sorted(counts.items()))}", flush=True)
    head = {"transformers": transformers.__version__, "noise": NOISE, "num_beams": BEAMS}
    return head | {"records": records}


def first_stop(
    tokenizer: PreTrainedTokenizerFast, tokens: list[int], stop_strings: list[str]
) -> list[int]:
    """Up to the first token with which the text has a stop string in it."""
    for length in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:length])
        if any(stop in text for stop in stop_strings):
            return tokens[:length]
    return tokens


def cut(generator: Generator, text: str) -> str:
    """A random piece of a text."""
    start = int(generator.integers(0, len(text) - 1))
    return text[start : start + int(generator.integers(1, 6))]


def attempt_stop(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    generator: Generator,
    unprintable: list[int],
    counts: Counter,
) -> dict[str, Any] | None:
    """A record of where transformers stops, None if another rule gives something else."""
    prompt = generator.integers(len(SPECIAL), VOCAB, 6).tolist()
    is_printable = bool(generator.random() < 0.7)
    options: Options = {"suppress_tokens": unprintable} if is_printable else {}
    options |= {"max_new_tokens": STOP_TOKENS}
    if generator.random() < 0.4:
        options["repetition_penalty"] = round(float(generator.uniform(1.2, 2)), 2)
    tokens = greedy(model, prompt, options)
    text = tokenizer.decode(tokens)
    # One piece of the output in any case; pieces of the prompt can match where both meet.
    pieces = [cut(generator, text) for _ in range(int(generator.integers(1, 4)))]
    if generator.random() < 0.2:
        pieces.append(tokenizer.decode(prompt)[-1:] + text[:1])
    stop_strings = list(dict.fromkeys(pieces))
    if len(tokens) < STOP_TOKENS or min(tokens) < len(SPECIAL):
        return None
    if "\N{REPLACEMENT CHARACTER}" in "".join(stop_strings):  # what half a character decodes to
        return None
    options["stop_strings"] = stop_strings
    stopped, _, _ = generate(model, prompt, options, tokenizer=tokenizer)
    wanted = first_stop(tokenizer, tokens, stop_strings)
    if stopped[0] != wanted:
        with_prompt = first_stop(tokenizer, prompt + tokens, stop_strings)
        is_prompt = len(stopped[0]) < len(wanted) and len(with_prompt) < len(prompt + wanted)
        counts["the prompt takes part" if is_prompt else "otherwise"] += 1
        if not is_prompt:
            print(stop_strings, repr(text), tokens, stopped[0], wanted)
        return None
    for seed in NOISE_SEEDS:
        with noise(model, NOISE, seed):
            if generate(model, prompt, options, tokenizer=tokenizer)[0] != stopped:
                return None
    if not 1 < len(wanted) < STOP_TOKENS:
        return None
    end = tokenizer.decode(wanted)
    counts["overhang"] += not any(end.endswith(stop) for stop in stop_strings)
    before = len(tokenizer.decode(wanted[:-1]))
    counts["across tokens"] += not any(stop in end[before:] for stop in stop_strings)
    if is_printable:
        del options["suppress_tokens"]
    return {"prompt": prompt, "printable": is_printable, "options": options, "tokens": wanted}


def record_stop_strings() -> dict[str, Any]:
    """Kept is where transformers stops at the first token that completes a stop string.

    Its own rule, a stop string that ends within the last token, sees the prompt's text as well, and
    each token's text by itself.
    """
    seed = json.loads((DATA / "tiny_models.json").read_text())["llama"]["seed"]
    model = build("llama", seed)
    path = TESTS / "fixtures" / "tiny" / "llama" / "tokenizer.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
    texts = [tokenizer.decode([token]) for token in range(VOCAB)]
    unprintable = [i for i, text in enumerate(texts) if not (text.isascii() and text.isprintable())]
    generator = np.random.default_rng(0)
    counts: Counter = Counter()
    records: list[dict[str, Any]] = []
    while len(records) < STOPS:
        record = attempt_stop(model, tokenizer, generator, unprintable, counts)
        if record is not None:
            records.append(record)
    print(f"stop_strings: {len(records)} records, {dict(counts)}", flush=True)
    head = {"transformers": transformers.__version__, "checkpoint": "llama", "noise": NOISE}
    return head | {"unprintable": unprintable, "records": records}


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*TINY, "stop_strings"]
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    for name in parser.parse_args().only:
        entry = record_stop_strings() if name == "stop_strings" else record_combinations(name)
        entries = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
        write(PATH, entries | {name: entry})


if __name__ == "__main__":
    main()
