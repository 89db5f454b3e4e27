"""Evaluation as a whole: from two models' folders to the figures that compare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovgen.errors import ConfigError, RequestError
from ovgen.evaluation.divergence import CHUNK, NUM_TOP, WINDOW, compare, reference
from ovgen.evaluation.fidelity import Continuation, Fidelity, fidelity
from ovgen.generation_config import GenerationConfig
from ovgen.llm import LLM
from ovgen.text.tokenizer import Tokenizer, load_tokenizer

MAX_TOKENS = 32_768  # of the text; as many take 1 GB
_MEMORY = 256 << 20  # bytes of the reference's distributions, where the fewest take no more
_BYTES = 8  # of a token's probability and its id
# No text needs more; it keeps a huge file from being tokenized for a few of its tokens.
CHARACTERS_A_TOKEN = 32


@dataclass(frozen=True, slots=True)
class _Task:
    """What both models are to do: token ids, each window and prompt as the model gets it."""

    windows: list[list[int]]
    prompts: list[list[int]]


def evaluate(
    model: Path,
    against: Path,
    *,
    text: str,
    prompts: Sequence[str] = (),
    device: str = "CPU",
    precision: str = "default",
    max_tokens: int = 4096,
    max_new_tokens: int = 64,
    progress: Callable[[str], None] = lambda stage: None,
) -> Fidelity:
    """Compare a model's predictions with a reference's; one is in memory after the other.

    The text is read in windows of 512 tokens, or a context where that is shorter. Each begins as a
    text does: with bos, where the reference's tokenizer adds it. The reference computes in float32
    throughout; both run without paging, and by no tuned profile.

    Args:
        model: an IR folder.
        against: that of the reference.
        text: what they are compared on.
        prompts: that both go on with.
        device: an OpenVINO device.
        precision: the model's: ``default``, as it usually runs, or ``exact``, for its weights
            alone.
        max_tokens: of the text that are read.
        max_new_tokens: that each prompt is gone on with.
        progress: called with a line about each stage.

    Raises:
        ConfigError: an option out of range, or two models with different vocabularies.
        RequestError: too short a text, or no numbers where predictions should be.
        OvgenError: a model cannot be loaded; see `ovgen.errors`.
    """
    _check("max_tokens", max_tokens, 2, MAX_TOKENS)
    _check("max_new_tokens", max_new_tokens, 1, None)
    tokenizer = load_tokenizer(against)
    text = text[: max_tokens * CHARACTERS_A_TOKEN]
    _check_tokenizers(load_tokenizer(model), tokenizer, [text, *prompts], model, against)

    progress("loading the reference")
    with _load(against, device, "exact") as llm:
        vocab_size, context_length = llm.vocab_size, llm.context_length
        size = min(WINDOW, context_length)
        task = _task(tokenizer, text, prompts, size, max_tokens)
        count = sum(len(window) - 1 for window in task.windows)
        progress(f"the reference on {count} tokens")
        expected = reference(llm, task.windows, max(NUM_TOP, _MEMORY // (_BYTES * count)))
        progress("the reference's continuations")
        theirs = _continue(llm, task.prompts, max_new_tokens)
        _check_numbers(expected.next_logprobs, against)
    progress("loading the model")
    with _load(model, device, precision) as llm:
        if llm.vocab_size != vocab_size:
            raise ConfigError(
                f"{model} predicts {llm.vocab_size} tokens and {against} predicts {vocab_size}: "
                "give a reference with the same vocabulary"
            )
        if llm.context_length < size:
            raise ConfigError(
                f"the context of {model} is {llm.context_length} tokens and that of {against} "
                f"{context_length}: give a reference with the same one"
            )
        progress(f"the model on {count} tokens")
        found = compare(expected, llm, task.windows)
        _check_numbers(found.kl, model)
        progress("the model's continuations")
        ours = _continue(llm, task.prompts, max_new_tokens)
    return fidelity(
        expected, found, [_compared(*each) for each in zip(prompts, ours, theirs, strict=True)]
    )


def _load(folder: Path, device: str, precision: str) -> LLM:
    """Compiled models on the disk would be of no use to anyone later on."""
    llm = LLM(
        folder,
        device,
        precision,
        properties={"CACHE_DIR": ""},
        profile="none",
        attention_backend="stateful",
        token_budget=CHUNK,
        prefix_caching=False,
    )
    llm.generation_config = GenerationConfig()  # the likeliest token, whatever the model asks for
    return llm


def _task(
    tokenizer: Tokenizer, text: str, prompts: Sequence[str], size: int, max_tokens: int
) -> _Task:
    token_ids = tokenizer.encode(text, add_special_tokens=False)[:max_tokens]
    begin = _begin(tokenizer)
    step = max(1, size - len(begin))
    windows = [begin + token_ids[i : i + step] for i in range(0, len(token_ids), step)]
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        raise RequestError("the text has fewer than two tokens, of which one could be predicted")
    return _Task(windows, [tokenizer.encode(prompt) for prompt in prompts])


def _begin(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that the tokenizer puts before a text."""
    whole, plain = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    places = range(len(whole) - len(plain) + 1)
    start = next((i for i in places if whole[i : i + len(plain)] == plain), 0)
    return whole[:start]


def _check_tokenizers(
    ours: Tokenizer, theirs: Tokenizer, texts: Sequence[str], model: Path, against: Path
) -> None:
    for text in texts:
        mine, other = (one.encode(text, add_special_tokens=False) for one in (ours, theirs))
        if mine != other:
            place = _num_equal(mine, other)
            pieces = [repr(one.decode(ids[place : place + 1])) for one, ids in
                      ((ours, mine), (theirs, other))]  # fmt: skip
            raise ConfigError(
                f"{model} and {against} cut the text into different tokens, first at token "
                f"{place} ({pieces[0]} and {pieces[1]}): give a reference with the same vocabulary"
            )


def _continue(
    llm: LLM, prompts: Sequence[Sequence[int]], count: int
) -> list[tuple[tuple[int, ...], str]]:
    """Tokens and text after each prompt, as far as the context goes."""
    found = []
    for prompt in prompts:
        room = max(1, min(count, llm.context_length - len(prompt)))
        (output,) = llm.generate(prompt, max_new_tokens=room, ignore_eos=True).outputs
        found.append((output.token_ids, output.text))
    return found


def _compared(
    prompt: str, ours: tuple[tuple[int, ...], str], theirs: tuple[tuple[int, ...], str]
) -> Continuation:
    length = min(len(ours[0]), len(theirs[0]))
    return Continuation(prompt, length, _num_equal(ours[0], theirs[0]), ours[1], theirs[1])


def _num_equal(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens that both begin with."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(left), len(right)))


def _check_numbers(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], folder: Path) -> None:
    if np.isnan(values).any():
        raise RequestError(
            f"{folder} predicts no numbers for this text: it overflows on this device; try "
            "another one, or the precision 'exact'"
        )


def _check(name: str, value: object, lowest: int, highest: int | None) -> None:
    is_count = isinstance(value, int) and not isinstance(value, bool)
    if not is_count or not lowest <= value <= (highest or value):  # type: ignore[operator]
        upper = f" to {highest}" if highest else " or more"
        raise ConfigError(f"{name} must be a whole number, {lowest}{upper}, not {value!r}")
