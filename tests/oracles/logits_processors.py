"""Record what transformers' logits processors and warpers make of some rows of logits.

    python tests/oracles/logits_processors.py      (needs torch and transformers)

Writes tests/data/logits_processors.json, .npz. torch's CPU sort is not stable from 17 elements on,
so which of several equal logits top-p and typical keep is its accident: they are recorded with
torch.sort made stable, after checking that the plain one keeps the same values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import logits_process as hf

DATA = Path(__file__).parents[1] / "data"
VOCAB = 400
WARPERS: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "top_k": (hf.TopKLogitsWarper, (1, 2, 5, 40, 1000)),
    "top_p": (hf.TopPLogitsWarper, (0.0, 0.1, 0.25, 0.5, 0.9, 0.95, 0.99)),
    "min_p": (hf.MinPLogitsWarper, (0.0, 0.01, 0.05, 0.2, 1.0)),
    "typical_p": (hf.TypicalLogitsWarper, (0.05, 0.2, 0.5, 0.9, 0.95)),
    "epsilon_cutoff": (hf.EpsilonLogitsWarper, (3e-4, 1e-3, 0.02, 0.125, 0.3)),
    "eta_cutoff": (hf.EtaLogitsWarper, (3e-4, 2e-3, 0.02, 0.3)),
}
WIDE = {  # the cases of the 20,000-wide row
    "top_k": (1, 50, 3000),
    "top_p": (0.3, 0.95),
    "min_p": (0.02, 0.1),
    "typical_p": (0.2, 0.95),
}
CHAINS: tuple[dict[str, float], ...] = (
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9},
    {"temperature": 1.5, "top_k": 0, "top_p": 0.95, "min_p": 0.05},
    {"temperature": 0.25, "top_k": 100, "top_p": 0.99, "typical_p": 0.9},
    {"temperature": 1.3, "top_k": 60, "min_p": 0.02, "typical_p": 0.8, "epsilon_cutoff": 3e-3},
    {"temperature": 2.0, "top_k": 0, "epsilon_cutoff": 1e-3, "eta_cutoff": 2e-3},
    {
        "temperature": 0.9,
        "top_k": 200,
        "top_p": 0.97,
        "min_p": 0.01,
        "typical_p": 0.95,
        "epsilon_cutoff": 2e-3,
        "eta_cutoff": 4e-3,
    },
)
EXACT_ROWS = ("eight",)  # probabilities of 1/8: no sum of them is rounded


def make_rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(20240607)
    noise = rng.normal(size=VOCAB) * 3
    peaked = rng.normal(size=VOCAB)
    peaked[[17, 200, 201, 399]] = [11.0, 9.5, 9.25, 7.0]
    ties = np.round(rng.normal(size=VOCAB) * 2 * 2) / 2
    holes = rng.normal(size=VOCAB) * 2
    holes[rng.random(VOCAB) < 0.6] = -np.inf
    tied_holes = np.round(rng.normal(size=VOCAB) * 2 * 2) / 2
    tied_holes[rng.random(VOCAB) < 0.6] = -np.inf
    lone = np.full(VOCAB, -np.inf)
    lone[123] = -2.5
    rows = {
        "noise": noise,
        "peaked": peaked,
        "ties": ties,
        "equal": np.full(VOCAB, 1.25),
        "holes": holes,
        "tied_holes": tied_holes,
        "lone": lone,
        "tiny": np.array([0.3, -1.1, 2.4, 2.2, -0.7]),
        "eight": np.full(8, -3.0),
        "wide": rng.normal(size=20_000) * 1.5,
    }
    return {name: row.astype(np.float32) for name, row in rows.items()}


def make_histories() -> dict[str, list[int]]:
    rng = np.random.default_rng(20240608)
    return {
        "one": [7],
        "two": [11, 12],
        "plain": rng.integers(0, VOCAB, 14).tolist(),
        "repeats": [5, 6, 7, 8, 5, 6, 7, 9, 5, 6, 7, 5, 6],
        "same": [9] * 10,
        "long": rng.integers(0, 12, 150).tolist(),
        "tiny": [0, 1, 2, 1, 1],
    }


def processor_cases() -> list[dict[str, Any]]:
    """Cases as parameters for ovgen's function of the name; see `build` for transformers' class."""
    minus_inf = "-inf"
    cases: list[dict[str, Any]] = []

    def add(name: str, histories: Sequence[str], rows: Sequence[str] = ("noise",), **params: Any):
        for history in histories:
            for row in rows:
                cases.append({"name": name, "row": row, "history": history, "params": params})

    some = ("plain", "repeats", "same", "long")
    add(
        "sequence_bias",
        ("one", *some),
        ("noise", "holes"),
        biases=[[[3], 2.5], [[9], -4.0], [[17], minus_inf]],
    )
    add(  # of several that end with one token those add up whose beginning matches
        "sequence_bias",
        ("one", "two", *some),
        biases=[
            [[7], 1.0],
            [[6, 7], 2.0],
            [[5, 6, 7], -3.5],
            [[7, 5, 6, 7], 0.25],
            [[9, 9], -1.5],
            [[9, 9, 9, 9], -2.0],
            [[9], 0.5],
            [[6, 8], minus_inf],
            [[6, 8, 5], 4.0],
        ],
    )
    add("sequence_bias", ("repeats",), biases=[[[7], 5.0], [[5, 6, 7], minus_inf], [[6, 7], 1.0]])
    # A sequence one longer than the context could be completed; transformers leaves it out.
    add("sequence_bias", ("two",), biases=[[[11, 12, 13], 2.0], [[12, 14], 3.0]])
    for penalty in (1.3, 0.8, 1.0, 5.0):
        add("repetition_penalty", some, penalty=penalty)
    add("repetition_penalty", some, ("peaked", "ties", "holes", "equal"), penalty=1.2)
    add("repetition_penalty", ("tiny",), ("tiny",), penalty=1.7)
    for size in (1, 2, 3, 5):
        add("no_repeat_ngram", ("one", "two", *some), size=size)
    add("no_repeat_ngram", ("tiny",), ("tiny",), size=2)
    add("no_repeat_ngram", ("repeats", "long"), ("holes",), size=2)
    words = [[3], [6, 7], [5, 6, 7], [5, 6, 8], [9, 9], [1], [2, 1], [42]]
    for ending in ([], [1], [1, 42], [7]):
        add("bad_words", ("one", *some), words=words, ending_ids=ending)
    add("bad_words", ("repeats", "long"), ("ties", "holes"), words=words, ending_ids=[1])
    for length in (0, 1, 13, 14, 15, 400):
        add("min_length", ("one", "plain", "repeats"), length=length, ending_ids=[2, 7])
    for prompt, new in ((3, 0), (3, 10), (3, 11), (3, 12), (13, 1), (14, 0), (14, 1)):
        add("min_new_tokens", ("plain",), num_prompt=prompt, min_new=new, ending_ids=[0, 399])
    add("min_new_tokens", ("tiny",), ("tiny",), num_prompt=2, min_new=4, ending_ids=[4])
    add("forced_bos", ("one", "two", "plain"), ("noise", "holes"), token_id=5)
    for length in (1, 2, 14, 15, 16):
        add("forced_eos", ("one", "plain"), max_length=length, token_ids=[2])
    add("forced_eos", ("plain",), ("holes",), max_length=15, token_ids=[2, 8])
    for start in (5, 12, 13, 14, 20):
        for factor in (1.01, 1.5, 0.9):
            # Both an ending token below and one above zero.
            add("exponential_decay", ("plain",), start=start, factor=factor, ending_ids=[0, 1, 3])
    add("exponential_decay", ("tiny",), ("tiny",), start=2, factor=1.2, ending_ids=[1, 4])
    add("suppress", ("one", "plain"), ("noise", "holes", "ties"), token_ids=[0, 5, 6, 399])
    for index in (1, 13, 14, 15):
        add("begin_suppress", ("one", "plain"), token_ids=[4, 220], begin_index=index)
    return cases


def build(name: str, params: dict[str, Any]) -> Callable[..., torch.Tensor]:
    if name == "sequence_bias":
        return hf.SequenceBiasLogitsProcessor({tuple(k): float(b) for k, b in params["biases"]})
    if name == "repetition_penalty":
        return hf.RepetitionPenaltyLogitsProcessor(params["penalty"])
    if name == "no_repeat_ngram":
        return hf.NoRepeatNGramLogitsProcessor(params["size"])
    if name == "bad_words":
        return hf.NoBadWordsLogitsProcessor(params["words"], params["ending_ids"] or None)
    if name == "min_length":
        return hf.MinLengthLogitsProcessor(params["length"], params["ending_ids"])
    if name == "min_new_tokens":
        return hf.MinNewTokensLengthLogitsProcessor(
            params["num_prompt"], params["min_new"], params["ending_ids"]
        )
    if name == "forced_bos":
        return hf.ForcedBOSTokenLogitsProcessor(params["token_id"])
    if name == "forced_eos":
        return hf.ForcedEOSTokenLogitsProcessor(params["max_length"], params["token_ids"])
    if name == "exponential_decay":
        # Its start counts from the prompt's end; with a prompt of 2 it is the total here.
        decay = (params["start"] - 2, params["factor"])
        return hf.ExponentialDecayLengthPenalty(decay, params["ending_ids"], 2)
    if name == "suppress":
        return hf.SuppressTokensLogitsProcessor(params["token_ids"])
    assert name == "begin_suppress"
    return hf.SuppressTokensAtBeginLogitsProcessor(params["token_ids"], params["begin_index"])


def record_processors(rows: dict[str, np.ndarray], histories: dict[str, list[int]]):
    cases, changed, values, ends = processor_cases(), [], [], []
    for case in cases:
        row = torch.from_numpy(rows[case["row"]].copy())[None]
        history = torch.tensor([histories[case["history"]]])
        made = build(case["name"], case["params"])(history, row)[0].numpy()
        assert made.dtype == np.float32
        assert not np.isnan(made).any(), case
        # An infinite bias makes -inf of -inf, which compares equal: it is no change.
        where = np.flatnonzero(made != rows[case["row"]])
        changed.append(where)
        values.append(made[where])
        ends.append(len(where) + (ends[-1] if ends else 0))
    return cases, {
        "changed": np.concatenate(changed).astype(np.int16),
        "values": np.concatenate(values),
        "ends": np.array(ends, np.int32),
    }


class StableSort:
    """Within it torch.sort is stable."""

    def __enter__(self) -> None:
        self._sort = sort = torch.sort
        torch.sort = lambda *args, **kwargs: sort(*args, stable=True, **kwargs)

    def __exit__(self, *exc: object) -> None:
        torch.sort = self._sort


def warp(make: Callable[..., Any], value: float, min_keep: int, row: np.ndarray) -> np.ndarray:
    """Indices kept, after checking that the values kept are not changed."""
    logits = torch.from_numpy(row.copy())[None]
    made = make(value, min_tokens_to_keep=min_keep)(torch.zeros(1, 1).long(), logits)[0].numpy()
    kept = np.flatnonzero(made > -np.inf)
    assert (made[kept] == row[kept]).all()
    return kept


def is_close_call(name: str, row: np.ndarray, value: float, min_keep: int) -> bool:
    """Whether the last bits of a float decide, all computed in float64."""
    logits = row[row > -np.inf].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    if name == "top_p":
        mass = np.cumsum(np.sort(probabilities))[:-min_keep]
        return bool((np.abs(mass - (1 - value)) < 1e-6).any())
    if name == "min_p" and value:
        ratios = probabilities[logits < logits.max()] / probabilities.max() / value
        return bool((np.abs(ratios - 1) < 1e-5).any())
    if name == "epsilon_cutoff":
        return bool((np.abs(probabilities / value - 1) < 1e-5).any())
    entropy = -np.sum(probabilities * np.log(np.maximum(probabilities, 1e-300)))
    if name == "eta_cutoff":
        eta = min(value, math.sqrt(value) * math.exp(-entropy))
        return bool((np.abs(probabilities / eta - 1) < 1e-5).any())
    if name == "typical_p":
        distance = np.abs(-np.log(np.maximum(probabilities, 1e-300)) - entropy)
        order = np.argsort(distance, kind="stable")
        mass = np.cumsum(probabilities[order])
        last = min(int((mass < value).sum()), len(order) - 1)
        bounds = [distance[order[last]]]
        if last + 1 < min_keep <= len(order):
            bounds.append(distance[order[min_keep - 1]])  # the nearest of all, of these
        gap = [
            np.abs(distance - bound)[logits != logits[np.argmin(np.abs(distance - bound))]]
            for bound in bounds
        ]
        is_near = any((one < 5e-6).any() for one in gap)
        return bool(is_near or (np.abs(mass - value)[: len(order) - 1] < 1e-6).any())
    return False


def nudged(name: str, row: np.ndarray, value: float, min_keep: int) -> float | None:
    """The first value from this one on that is no close call."""
    for step in range(60):
        tried = value if step == 0 else round(value * (1 + 3e-4 * step), 9)
        if not is_close_call(name, row, tried, min_keep):
            return tried
    return None


def splits_equals(row: np.ndarray, kept: np.ndarray) -> bool:
    """Whether of several equal logits some are kept and some are not."""
    dropped = np.setdiff1d(np.flatnonzero(row > -np.inf), kept)
    return bool(np.intersect1d(row[kept], row[dropped]).size)


def record_warpers(rows: dict[str, np.ndarray]):
    cases: list[dict[str, Any]] = []
    all_kept: list[np.ndarray] = []
    ends, left_out, num_split = [], [], 0
    for row_name, row in rows.items():
        for name, (make, values) in WARPERS.items():
            for value in WIDE.get(name, ()) if row_name == "wide" else values:
                for min_keep in (1,) if row_name == "wide" else (1, 3):
                    case = {"name": name, "row": row_name, "value": value, "min_keep": min_keep}
                    if row_name not in EXACT_ROWS and name != "top_k":
                        case["value"] = value = nudged(name, row, value, min_keep)
                    if value is None:
                        left_out.append((case, "close call"))
                        continue
                    plain = warp(make, value, min_keep, row)
                    with StableSort():
                        kept = warp(make, value, min_keep, row)
                    assert len(plain) == len(kept)
                    assert (np.sort(row[plain]) == np.sort(row[kept])).all(), case
                    if splits_equals(row, kept):
                        num_split += 1
                        if name not in ("top_p", "typical_p"):  # torch.topk chose
                            left_out.append((case, "torch.topk chose among equals"))
                            continue
                    cases.append(case)
                    all_kept.append(kept)
                    ends.append(len(kept) + (ends[-1] if ends else 0))
    print("warpers", len(cases), "of which split equals", num_split)
    print("left out", *left_out, sep="\n  ")
    return cases, {
        "kept": np.concatenate(all_kept).astype(np.int16),
        "kept_ends": np.array(ends, np.int32),
    }


def record_chains(rows: dict[str, np.ndarray]):
    cases: list[dict[str, Any]] = []
    all_kept: list[np.ndarray] = []
    all_values: list[np.ndarray] = []
    ends = []
    for chain in CHAINS:
        for row_name in ("noise", "peaked", "ties", "holes", "tied_holes"):
            options = {"top_k": 0, **chain}
            row = torch.from_numpy(rows[row_name].copy())[None]
            config = GenerationConfig(do_sample=True, **options)
            for attribute in ("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"):
                if attribute not in chain:
                    setattr(config, attribute, None)
            mixin = GenerationMixin()
            mixin.config = None
            processors = mixin._get_logits_processor(config, 1, device="cpu")
            assert len(processors) == sum(bool(v) for v in chain.values()), processors
            with StableSort():
                made = row
                for processor in processors:
                    kind = type(processor).__name__
                    name = next((n for n, (c, _) in WARPERS.items() if c.__name__ == kind), None)
                    if name is not None:
                        value = options[name]
                        assert not is_close_call(name, made[0].numpy(), value, 1), (chain, name)
                    made = processor(torch.zeros(1, 1).long(), made)
            kept = np.flatnonzero(made[0].numpy() > -np.inf)
            cases.append({"row": row_name, "options": chain})
            all_kept.append(kept)
            all_values.append(made[0].numpy()[kept])
            ends.append(len(kept) + (ends[-1] if ends else 0))
    return cases, {
        "chain_kept": np.concatenate(all_kept).astype(np.int16),
        "chain_values": np.concatenate(all_values),
        "chain_ends": np.array(ends, np.int32),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One list item a line, so that a change shows as one."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list):
            items = ",\n".join(json.dumps(item, separators=(",", ":")) for item in value)
            parts.append(f'"{key}": [\n{items}\n]')
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    path.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def main() -> None:
    import transformers

    torch.set_num_threads(1)
    rows, histories = make_rows(), make_histories()
    processors, processor_arrays = record_processors(rows, histories)
    warpers, warper_arrays = record_warpers(rows)
    chains, chain_arrays = record_chains(rows)
    print("processors", len(processors), "chains", len(chains))
    content = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "histories": histories,
        "processors": processors,
        "warpers": warpers,
        "chains": chains,
    }
    write_json(DATA / "logits_processors.json", content)
    arrays = {f"row_{name}": row for name, row in rows.items()}
    arrays |= processor_arrays | warper_arrays | chain_arrays
    np.savez_compressed(DATA / "logits_processors.npz", **arrays)


if __name__ == "__main__":
    main()
