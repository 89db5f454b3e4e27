"""Record what llama.cpp's samplers make of some rows of logits and token histories.

    python tests/oracles/llama_cpp_samplers.py smollm2.gguf      (needs llama-cpp-python)

Writes tests/data/llama_cpp_samplers.json, .npz. Of the GGUF only the vocabulary is used, for DRY's
sequence breakers.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp.llama_cpp as api
import numpy as np

DATA = Path(__file__).parents[1] / "data"
VOCAB = 400
DEFAULT_BREAKERS = ["\n", ":", '"', "*"]
BREAKERS = {
    "default": DEFAULT_BREAKERS,
    "none": [],
    "colon_space": [": "],
    "turns": ["\nUser:", "\nAssistant:"],
    "markup": ["<|", "</s>", "```"],
    "overlapping": ["=-", "=-=", "--", "=====", "->"],
    "spaces": ["  ", " \n"],
    "word": [" therefore"],
    "cut_to_40": ["0123456789012345678901234567890123456789 and more"],
    "beyond_ascii": ["。", "é"],  # whole ones only; see `sequences`
}
TEXTS = {
    "verse": "Row, row, row your boat,\nGently down the stream.\nRow, row, row your boat,\nGently",
    "list": "* one: two\n* one: two\n* one: two\n* one:",
    "said": 'She said "no" and he said "yes" and she said "no" and he said "yes" and she said "',
    "plain": "the cat sat on the mat and the cat sat on the mat and the cat sat on the",
    "code": "for i in range(10):\n    print(i)\nfor i in range(10):\n    print(i)\nfor i in range",
    "chat": "\nUser: What is it?\nAssistant: I do not see.\nUser: What is it?\nAssistant: I do not",
    "thus": "It rains therefore it is wet and it rains therefore it is wet and it rains therefore",
}


def apply(sampler: Any, ids: Sequence[int], logits: Iterable[float]) -> tuple[list, list, int]:
    """Ids and logits left, in the sampler's order, and the index of the selected one."""
    data = (api.llama_token_data * len(ids))(
        *(api.llama_token_data(int(i), float(x), 0.0) for i, x in zip(ids, logits, strict=True))
    )
    pointer = ctypes.cast(data, ctypes.POINTER(api.llama_token_data))
    array = api.llama_token_data_array(pointer, len(ids), -1, False)
    api.llama_sampler_apply(sampler, ctypes.byref(array))
    left = [array.data[i] for i in range(array.size)]
    return [item.id for item in left], [item.logit for item in left], array.selected


def make_rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(20240609)
    peaked = rng.normal(size=VOCAB)
    peaked[[3, 77, 150, 151, 398]] = [8.0, 8.7, 9.1, 7.2, 6.9]
    several = rng.normal(size=VOCAB) * 0.5
    several[10:300:40] = [6.0, 6.2, 6.5, 5.5, 7.0, 5.2, 6.9, 5.8]
    one = rng.normal(size=VOCAB)
    one[301] = 20.0
    holes = rng.normal(size=VOCAB) * 2
    holes[rng.random(VOCAB) < 0.5] = -np.inf
    rows = {
        "noise": rng.normal(size=VOCAB) * 3,
        "flat": rng.normal(size=VOCAB) * 0.1,
        "peaked": peaked,
        "several": several,
        "one": one,
        "holes": holes,
        "tiny": np.array([0.3, -1.1, 2.4, 2.2, -0.7]),
    }
    return {name: row.astype(np.float32) for name, row in rows.items()}


def make_histories() -> dict[str, list[int]]:
    rng = np.random.default_rng(20240610)
    block = rng.integers(50, VOCAB, 170).tolist()
    return {
        "empty": [],
        "one": [7],
        "two_same": [7, 7],
        "nested": [1, 2, 3, 3, 2, 3, 4, 1, 2, 3],  # llama.cpp's own example
        "period_2": [1, 2] * 12,
        "period_3": [5, 6, 7] * 9 + [5, 6],
        "same": [9] * 30,
        "same_long": [9] * 400,
        "twice": [*block[:40], 20, *block[:40]],
        "long": [*block, 21, *block],  # a repeat of 170 tokens
        "nested_deep": [1, 2, 1, 3, 1, 2, 1, 4, 1, 2, 1, 3, 1, 2, 1, 5, 1, 2, 1, 3, 1, 2, 1],
        "few_symbols": rng.integers(0, 3, 200).tolist(),
        "random": rng.integers(0, 12, 120).tolist(),
        "no_repeat": list(range(60)),
    }


def fed(sampler: Any, history: Iterable[int]) -> Any:
    for token_id in history:
        api.llama_sampler_accept(sampler, token_id)
    return sampler


class Recorder:
    """Cases, and what of a row changed in them, one after the other."""

    def __init__(self) -> None:
        self.cases: list[dict[str, Any]] = []
        self.changed: list[int] = []
        self.values: list[float] = []
        self.ends: list[int] = []

    def add(self, case: dict[str, Any], changed: Sequence[int], values: Sequence[float]) -> None:
        self.cases.append(case)
        self.changed += changed
        self.values += values
        self.ends.append(len(self.changed))

    def add_row(self, case: dict[str, Any], sampler: Any, row: np.ndarray) -> None:
        ids, logits, _ = apply(sampler, range(len(row)), row)
        api.llama_sampler_free(sampler)
        assert ids == list(range(len(row)))
        made = np.array(logits, np.float32)
        changed = np.flatnonzero(made != row)
        self.add(case, changed.tolist(), made[changed].tolist())

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        return {
            f"{name}_changed": np.array(self.changed, np.uint16),
            f"{name}_values": np.array(self.values, np.float32),
            f"{name}_ends": np.array(self.ends, np.int32),
        }


class Vocabulary:
    def __init__(self, path: str) -> None:
        self.model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
        self.pointer = api.llama_model_get_vocab(self.model.model)
        self.size = api.llama_vocab_n_tokens(self.pointer)
        self.words = [self.word(token_id) for token_id in range(self.size)]

    def word(self, token_id: int) -> bytes:
        buffer = ctypes.create_string_buffer(1024)
        size = api.llama_token_to_piece(self.pointer, token_id, buffer, len(buffer), 0, True)
        assert size >= 0
        return buffer.raw[:size]

    def dry(self, params: Sequence[float | None], breakers: Sequence[str]) -> Any:
        multiplier, base, allowed, last_n = params
        texts = (ctypes.c_char_p * len(breakers))(*(text.encode() for text in breakers))
        every = 4096 if last_n is None else last_n
        return api.llama_sampler_init_dry(
            self.pointer, multiplier, base, allowed, every, texts, len(breakers)
        )

    def sequences(self, breaker: bytes) -> set[tuple[int, ...]]:
        """The breaker as token sequences: as get_overlapping_token_sequences of llama.cpp.

        That also makes sequences whose head ends within a character. Their tail, which begins
        within it, cannot be said in text and is tokenized as the replacement character: such
        sequences never occur, and are left out here.
        """
        breaker, found = breaker[:40], set()
        for token_id, word in enumerate(self.words):
            if breaker in word:
                found.add((token_id,))
                continue
            for start in range(len(word)):
                size = len(word) - start
                if size < len(breaker) and word[start:] == breaker[:size]:
                    if (breaker[size] & 0xC0) == 0x80:
                        continue
                    tail = self.model.tokenize(breaker[size:], add_bos=False, special=False)
                    found.add((token_id, *tail[:20]))
        return found

    def check(self, breakers: Sequence[str], sequences: set[tuple[int, ...]]) -> None:
        """Compare with what llama.cpp's sampler shows of its own sequences."""
        neutral = [self.model.tokenize(w, add_bos=False)[0] for w in (b" zebra", b" cat", b" dog")]
        assert not {s[0] for s in sequences} & set(neutral)
        # A token that follows a repeat is spared if it is a breaker by itself.
        sampler = self.dry((1.0, 2.0, 1, None), breakers)
        for token_id in range(self.size):
            if token_id in neutral:
                continue
            api.llama_sampler_reset(sampler)
            fed(sampler, [neutral[0], token_id, neutral[0]])
            _, logits, _ = apply(sampler, [token_id], [0.0])
            assert (logits[0] == 0.0) == ((token_id,) in sequences), (breakers, token_id)
        # Nothing is repeated right after a breaker: the token after its first time goes free.
        by_length: dict[int, list[tuple[int, ...]]] = {}
        for sequence in sorted(sequences):
            by_length.setdefault(len(sequence), []).append(sequence)
        singles = {s[0] for s in sequences if len(s) == 1}
        for length, group in by_length.items():
            if length == 1:
                continue
            for sequence in group:
                history = [*sequence, neutral[1], neutral[2], *sequence]
                api.llama_sampler_reset(sampler)
                fed(sampler, history)
                _, logits, _ = apply(sampler, [neutral[1]], [0.0])
                assert logits[0] == 0.0, (breakers, sequence)
                # Without its last token it is none, unless another is its end.
                cut = sequence[:-1]
                ends = {cut[i:] for i in range(len(cut))}
                if ends & sequences or set(cut) & singles:
                    continue
                api.llama_sampler_reset(sampler)
                fed(sampler, [*cut, neutral[1], neutral[2], *cut])
                _, logits, _ = apply(sampler, [neutral[1]], [0.0])
                assert logits[0] < 0.0, (breakers, cut)
        api.llama_sampler_free(sampler)


def record_dry(vocabulary: Vocabulary, rows: dict, histories: dict) -> Recorder:
    recorder = Recorder()
    # Bases that float32 holds, but no power of 2: there the largest exponent is one of rounding.
    params = [
        (0.8, 1.75, 2, None),
        (0.8, 1.75, 1, None),
        (1.5, 1.875, 3, None),
        (0.1, 1.25, 5, None),
        (2.0, 1.0, 2, None),
        (0.5, 1.0078125, 2, None),
        (3.0, 3.875, 2, None),  # beyond what float32 holds
        (-0.5, 1.5, 2, None),
        (0.8, 1.75, 0, None),
        (0.8, 1.75, 2, 64),
        (0.8, 1.75, 2, 10),
        (0.8, 1.75, 2, 5),
        (0.8, 1.75, 4, 4),
        (0.8, 1.75, 4, 5),
        (1.0, 1.75, 1, 1),
        (0.0, 1.75, 2, None),
    ]
    for multiplier, base, allowed, last_n in params:
        for name, history in histories.items():
            sampler = vocabulary.dry((multiplier, base, allowed, last_n), [])
            case = {"history": name, "params": [multiplier, base, allowed, last_n]}
            recorder.add_row(case, fed(sampler, history), rows["noise"])
    return recorder


def record_dry_texts(vocabulary: Vocabulary) -> tuple[Recorder, dict[str, list[int]]]:
    recorder = Recorder()
    texts = {
        name: vocabulary.model.tokenize(text.encode(), add_bos=False, special=False)
        for name, text in TEXTS.items()
    }
    for name, ids in texts.items():
        for breakers in ("none", "default", "colon_space", "turns", "word"):
            # Also within the text, where it may not have just met a breaker.
            for length in sorted({len(ids), len(ids) - 1, len(ids) - 3, len(ids) * 2 // 3}):
                sampler = fed(
                    vocabulary.dry((0.8, 1.75, 2, None), BREAKERS[breakers]), ids[:length]
                )
                case = {"text": name, "length": length, "breakers": breakers}
                recorder.add_row(case, sampler, np.zeros(vocabulary.size, np.float32))
    return recorder, texts


def record_penalties(rows: dict, histories: dict) -> Recorder:
    recorder = Recorder()
    several = [
        (1.3, 0.0, 0.0, None),
        (0.7, 0.0, 0.0, None),
        (1.3, 0.0, 0.0, 8),
        (1.3, 0.0, 0.0, 1),
        (1.0, 0.4, 0.0, None),
        (1.0, 0.4, 0.0, 8),
        (1.0, 0.0, 0.7, None),
        (1.0, 0.0, 0.7, 8),
        (1.0, 0.3, 0.9, None),
        (1.0, -0.3, -0.9, 16),
        (1.2, 0.3, 0.9, None),
        (1.2, 0.3, 0.9, 16),
    ]
    for repeat, frequency, presence, last_n in several:
        for name in ("one", "nested", "same", "twice", "random", "no_repeat", "few_symbols"):
            for row in ("noise", "holes"):
                params = [repeat, frequency, presence, last_n]
                every = 4096 if last_n is None else last_n
                sampler = api.llama_sampler_init_penalties(
                    VOCAB, every, repeat, frequency, presence
                )
                case = {"row": row, "history": name, "params": params}
                recorder.add_row(case, fed(sampler, histories[name]), rows[row])
    return recorder


def probabilities_of(row: np.ndarray) -> np.ndarray:
    weights = np.exp(row.astype(np.float64) - row.max())
    return weights / weights.sum()


def record_truncations(rows: dict) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    cases, all_kept, ends = [], [], []
    for row_name, row in rows.items():
        for threshold in (0.02, 0.05, 0.1, 0.13, 0.2, 0.25, 0.3, 0.4, 0.5):
            assert (np.abs(probabilities_of(row) / threshold - 1) > 1e-5).all()
            sampler = api.llama_sampler_init_xtc(1.0, threshold, 1, 1)
            ids, logits, _ = apply(sampler, range(len(row)), row)
            kept = sorted(i for i, x in zip(ids, logits, strict=True) if x > -math.inf)
            cases.append({"name": "xtc", "row": row_name, "value": threshold})
            all_kept.append(kept)
            api.llama_sampler_free(sampler)
        for n in (0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0):
            finite = row[row > -np.inf].astype(np.float64)
            bound = finite.max() - n * finite.std()
            assert (np.abs(finite - bound) > 1e-5).all()
            sampler = api.llama_sampler_init_top_n_sigma(n)
            ids, logits, _ = apply(sampler, range(len(row)), row)
            cases.append({"name": "top_n_sigma", "row": row_name, "value": n})
            all_kept.append([i for i, x in zip(ids, logits, strict=True) if x > -math.inf])
            api.llama_sampler_free(sampler)
    ends = np.cumsum([len(kept) for kept in all_kept])
    arrays = {
        "kept": np.array([i for kept in all_kept for i in kept], np.uint16),
        "kept_ends": ends.astype(np.int32),
    }
    return cases, arrays


def record_mirostat(rows: dict) -> list[dict[str, Any]]:
    """Runs of 16 steps on one row, without close calls: size kept and token selected."""
    runs = []
    for row_name in ("noise", "flat", "peaked", "several", "one", "holes", "tiny"):
        row = rows[row_name]
        surprise = np.sort(-np.log2(np.maximum(probabilities_of(row), 1e-300)))
        for tau, eta in ((5.0, 0.1), (2.0, 0.1), (3.0, 0.5), (1.0, 1.0), (8.0, 0.3), (0.4, 0.2)):
            for seed in range(1, 200):
                sampler = api.llama_sampler_init_mirostat_v2(seed, tau, eta)
                mu, sizes, selected, is_close = 2 * tau, [], [], False
                for _ in range(16):
                    is_close = is_close or bool((np.abs(surprise - mu) < 2e-4).any())
                    ids, _, index = apply(sampler, range(len(row)), row)
                    sizes.append(len(ids))
                    selected.append(ids[index])
                    kept = probabilities_of(row)[ids]
                    mu -= eta * (-math.log2(kept[index] / kept.sum()) - tau)
                api.llama_sampler_free(sampler)
                if not is_close:
                    case = {"row": row_name, "tau": tau, "eta": eta, "final_mu": mu}
                    runs.append(case | {"sizes": sizes, "selected": selected})
                    break
            else:
                print("mirostat: only close calls", row_name, tau, eta)
    return runs


def flat(sequences: set[tuple[int, ...]]) -> dict[str, Any]:
    """Single tokens, and longer sequences."""
    return {
        "tokens": sorted(s[0] for s in sequences if len(s) == 1),
        "sequences": sorted(s for s in sequences if len(s) > 1),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One list item a line, so that a change shows as one."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list):
            items = ",\n".join(json.dumps(item, separators=(",", ":")) for item in value)
            parts.append(f'"{key}": [\n{items}\n]')
        else:
            items = ",\n".join(
                f"{json.dumps(name)}: {json.dumps(item, separators=(',', ':'))}"
                for name, item in value.items()
            )
            parts.append(f'"{key}": {{\n{items}\n}}')
    path.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf")
    vocabulary = Vocabulary(parser.parse_args().gguf)
    rows, histories = make_rows(), make_histories()
    token_sequences = {}
    for name, breakers in BREAKERS.items():
        sequences = set().union(*(vocabulary.sequences(text.encode()) for text in breakers))
        if breakers:
            vocabulary.check(breakers, sequences)
        token_sequences[name] = {"breakers": breakers, **flat(sequences)}
        print(name, len(sequences), max(map(len, sequences), default=0))
    dry = record_dry(vocabulary, rows, histories)
    dry_texts, texts = record_dry_texts(vocabulary)
    penalties = record_penalties(rows, histories)
    truncations, truncation_arrays = record_truncations(rows)
    mirostat = record_mirostat(rows)
    content = {
        "versions": {"llama_cpp_python": llama_cpp.__version__},
        "histories": histories,
        "texts": texts,
        "breakers": token_sequences,
        "dry": dry.cases,
        "dry_texts": dry_texts.cases,
        "penalties": penalties.cases,
        "truncations": truncations,
        "mirostat": mirostat,
    }
    for name, value in content.items():
        print(name, len(value))
    write_json(DATA / "llama_cpp_samplers.json", content)
    arrays = {f"row_{name}": row for name, row in rows.items()}
    arrays |= dry.arrays("dry") | dry_texts.arrays("dry_texts") | penalties.arrays("penalties")
    np.savez_compressed(DATA / "llama_cpp_samplers.npz", **arrays, **truncation_arrays)


if __name__ == "__main__":
    main()
