"""Beam search of transformers: token ids and scores of every combination of its options.

On tiny checkpoints (the full product) and on SmolLM2 (a few). The prompt and the EOS ids of a
checkpoint are searched until hypotheses end at many lengths and until no result changes when every
logit is off by up to NOISE. Writes tests/data/beam_search.json.

    python tests/oracles/beam_search.py smollm2.gguf [--only llama smollm2]
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tiny_models import VOCAB, build
from transformers import PreTrainedModel

DATA = Path(__file__).parents[1] / "data"
NOISE = 2e-4
NOISE_SEEDS = (1, 2)
NEW_TOKENS = 16
MAX_TRIALS = 400
EOS_TRIALS = 6  # of the longer list, for one EOS that matters
SAMPLE = 16  # configurations that are tried first
ENDED = (0.25, 0.9)  # the share of sequences that EOS has to end, for either number of EOS ids
MIN_LENGTHS = 7  # of the 16, for either
MAX_EMPTY = 0.1  # the share of sequences that are but an EOS
MIN_EFFECT = 0.06  # of the settings of the others, an option changes the result in so many
MIN_DISTINCT = 0.1  # of the results
TINY = ("llama", "qwen2", "gpt2")
OPTIONS: dict[str, tuple] = {
    "num_beams": (2, 4, 6),
    "length_penalty": (-1.0, 0.0, 1.0, 2.0),
    "early_stopping": (True, False, "never"),
    "no_repeat_ngram_size": (0, 2),
    "repetition_penalty": (1.0, 1.3),
    "num_eos": (1, 5),
}
Results = list[tuple[list[int], float]]  # best first
Runner = Callable[[PreTrainedModel, dict[str, Any], dict[str, Any]], Results]

SMOLLM2_PROMPT = "story"  # of smollm2_ids.json
SMOLLM2_SETUP = {"eos_one": [30], "eos_five": [30, 28, 284, 2, 198], "max_new_tokens": 24}
SMOLLM2_OPTIONS = [  # values of OPTIONS
    (2, 1.0, False, 0, 1.0, 1),
    (4, 1.0, True, 0, 1.0, 5),
    (4, 0.0, "never", 2, 1.0, 1),
    (4, 2.0, False, 2, 1.3, 5),
    (6, -1.0, False, 3, 1.0, 1),
    (6, 1.0, "never", 0, 1.3, 5),
]


def product(options: dict[str, tuple]) -> list[dict[str, Any]]:
    """Every combination, the widest search first: noise changes it soonest."""
    combinations = itertools.product(*options.values())
    rows = [dict(zip(options, values, strict=True)) for values in combinations]
    return sorted(rows, key=lambda row: row["num_beams"], reverse=True)


@contextmanager
def noise(model: PreTrainedModel, amplitude: float, seed: int) -> Iterator[None]:
    """Every logit off by up to `amplitude`."""
    generator = torch.Generator().manual_seed(seed)

    def add(_module: Any, _inputs: Any, output: Any) -> Any:
        shift = torch.rand(output.logits.shape, generator=generator) * 2 - 1
        output.logits = output.logits + amplitude * shift
        return output

    handle = model.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def generate(model: PreTrainedModel, prompt: list[int], **options: Any) -> tuple[list, list]:
    """The generated part of every returned sequence, padding included, and the scores."""
    result = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        **{"pad_token_id": 0} | options,
    )
    return result.sequences[:, len(prompt) :].tolist(), result.sequences_scores.tolist()


def until_eos(tokens: list[int], eos: list[int]) -> list[int]:
    """Without what follows the first EOS."""
    ends = [position for position, token in enumerate(tokens) if token in eos]
    return tokens[: ends[0] + 1] if ends else tokens


def eos_of(setup: dict[str, Any], config: dict[str, Any]) -> list[int]:
    return setup[{1: "eos_one", 2: "eos_two", 5: "eos_five"}[config["num_eos"]]]


def run(
    model: PreTrainedModel, setup: dict[str, Any], config: dict[str, Any], returned: int = 0
) -> Results:
    """The hypotheses of one configuration, all of them or `returned`."""
    eos = eos_of(setup, config)
    options = {key: value for key, value in config.items() if key != "num_eos"}
    rows, scores = generate(
        model,
        setup["prompt"],
        eos_token_id=eos,
        num_return_sequences=returned or config["num_beams"],
        max_new_tokens=setup["max_new_tokens"],
        **options,
    )
    sequences = [until_eos(row, eos) for row in rows]
    for sequence in sequences:
        assert sequence[-1] in eos or len(sequence) == setup["max_new_tokens"], sequence
    assert scores == sorted(scores, reverse=True), scores
    assert scores[-1] > -1e6, scores
    return list(zip(sequences, scores, strict=True))


def tokens_of(results: Results) -> list[list[int]]:
    return [tokens for tokens, *_ in results]


def robust(
    model: PreTrainedModel,
    setup: dict,
    configs: list[dict],
    found: list[Results],
    run_one: Runner,
    amplitude: float,
) -> bool:
    """True if noise changes no result."""
    for config, results in zip(configs, found, strict=True):
        for seed in NOISE_SEEDS:
            with noise(model, amplitude, seed):
                if tokens_of(run_one(model, setup, config)) != tokens_of(results):
                    return False
    return True


def candidates(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """Tokens that beams reach, as EOS to choose from."""
    found = set()
    for ngram, penalty in itertools.product((0, 2), (1.0, 1.3)):
        rows, _ = generate(
            model, prompt, num_beams=6, num_return_sequences=6, max_new_tokens=NEW_TOKENS,
            eos_token_id=None, no_repeat_ngram_size=ngram, repetition_penalty=penalty,
        )  # fmt: skip
        found.update(token for row in rows for token in row)
    return sorted(found - {0, 1, 2, 3})


def matters(results: list[Results], min_lengths: int) -> bool:
    """True if EOS ends some hypotheses and not others, at several lengths."""
    rows = [tokens for result in results for tokens in tokens_of(result)]
    lengths = np.array([len(tokens) for tokens in rows])
    ended = np.mean(lengths < NEW_TOKENS)
    empty = np.mean(lengths < 2)
    return bool(
        ENDED[0] <= ended <= ENDED[1]
        and empty <= MAX_EMPTY
        and len(set(lengths.tolist())) >= min_lengths
    )


def effects(configs: list[dict], found: list[Results]) -> dict[str, float]:
    """For each option: in how many of the others' settings do its values give several results."""
    shares = {}
    for option in configs[0]:
        groups: dict[str, set[str]] = {}
        for config, results in zip(configs, found, strict=True):
            others = str({key: value for key, value in config.items() if key != option})
            groups.setdefault(others, set()).add(str(tokens_of(results)))
        shares[option] = float(np.mean([len(group) > 1 for group in groups.values()]))
    return shares


def rich(configs: list[dict], found: list[Results]) -> bool:
    """True if every option matters and "never" differs from False somewhere."""
    distinct = len({str(tokens_of(results)) for results in found})
    if distinct < MIN_DISTINCT * len(found):
        return False
    pairs = [
        (config, results)
        for config, results in zip(configs, found, strict=True)
        if config["early_stopping"] is not True
    ]
    never = effects(*map(list, zip(*pairs, strict=True)))["early_stopping"]
    return min(effects(configs, found).values()) >= MIN_EFFECT and never >= MIN_EFFECT / 3


def search(
    name: str,
    model: PreTrainedModel,
    options: dict[str, tuple],
    run_one: Runner,
    many: str,
    amplitude: float,
    accept: Callable[[dict, list[dict], list[Results]], bool] = lambda *_: True,
) -> tuple[dict[str, Any], list[dict], list[Results]]:
    """The first prompt and EOS ids that matter and are robust; `many` names the longer EOS list."""
    generator = np.random.default_rng(sum(map(ord, name)))
    configs = product(options)
    parts = [[row for row in configs if row["num_eos"] == count] for count in options["num_eos"]]
    samples = [[part[i] for i in generator.permutation(len(part))[:SAMPLE]] for part in parts]
    for _ in range(MAX_TRIALS):
        prompt = generator.integers(4, VOCAB, generator.integers(6, 15)).tolist()
        setup = {"prompt": prompt, "max_new_tokens": NEW_TOKENS}
        tokens = generator.permutation(candidates(model, prompt)).tolist()
        for first in tokens:
            setup["eos_one"] = [first]
            if not matters([run_one(model, setup, row) for row in samples[0]], MIN_LENGTHS - 2):
                continue
            others = [token for token in tokens if token != first]
            for _ in range(EOS_TRIALS):
                more = generator.choice(others, options["num_eos"][1] - 1, replace=False).tolist()
                setup[many] = [first, *more]
                if not matters([run_one(model, setup, row) for row in samples[1]], MIN_LENGTHS - 2):
                    continue
                found = [run_one(model, setup, config) for config in configs]
                split = [
                    [row for config, row in zip(configs, found, strict=True) if config in part]
                    for part in parts
                ]
                good = all(matters(part, MIN_LENGTHS) for part in split) and rich(configs, found)
                if good and accept(setup, configs, found):
                    if robust(model, setup, configs, found, run_one, amplitude):
                        return setup, configs, found
                    print(f"{name}: {setup[many]} not robust", flush=True)
    raise SystemExit(f"{name}: nothing robust")


def record(setup: dict[str, Any], configs: list[dict], found: list[Results]) -> dict[str, Any]:
    records = []
    for config, results in zip(configs, found, strict=True):
        scores = [round(score, 6) for _, score, *_ in results]
        records.append(config | {"sequences": tokens_of(results), "scores": scores})
    return {"transformers": transformers.__version__} | setup | {"records": records}


def report(name: str, entry: dict[str, Any]) -> None:
    """What the records exercise."""
    limit = entry["max_new_tokens"]
    lengths = [len(row) for item in entry["records"] for row in item["sequences"]]
    mixed = sum(len({len(row) for row in item["sequences"]}) > 1 for item in entry["records"])
    distinct = {json.dumps(item["sequences"]) for item in entry["records"]}
    print(
        f"{name}: {len(entry['records'])} configurations, {len(distinct)} distinct results, "
        f"{len(lengths)} sequences, {np.mean(np.array(lengths) < limit):.2f} shorter than {limit}, "
        f"lengths {np.bincount(lengths).tolist()}, {mixed} configurations of several lengths"
    )


def write(path: Path, entries: dict[str, Any]) -> None:
    """One record a line."""
    parts = []
    for name in sorted(entries):
        head = {key: value for key, value in entries[name].items() if key != "records"}
        records = [json.dumps(item, separators=(",", ":")) for item in entries[name]["records"]]
        lines = ",\n".join(records)
        parts.append(f'"{name}": {json.dumps(head)[:-1]}, "records": [\n{lines}\n]}}')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def update(path: Path, name: str, entry: dict[str, Any]) -> None:
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write(path, entries | {name: entry})
    report(name, entry)


def record_tiny(name: str, amplitude: float) -> dict[str, Any]:
    model = build(name, json.loads((DATA / "tiny_models.json").read_text())[name]["seed"])
    setup, configs, found = search(name, model, OPTIONS, run, "eos_five", amplitude)
    for config, results in zip(configs, found, strict=True):
        assert tokens_of(run(model, setup, config, 1)) == tokens_of(results)[:1], config
    return record(setup | {"noise": amplitude}, configs, found)


def record_smollm2(gguf: str, amplitude: float) -> dict[str, Any]:
    from smollm2_reference import load  # here: it needs gguf

    model = load(gguf)
    prompts = json.loads((DATA / "smollm2_ids.json").read_text(encoding="utf-8"))["prompts"]
    prompt = next(row["ids"] for row in prompts if row["name"] == SMOLLM2_PROMPT)
    setup = {"prompt": prompt} | SMOLLM2_SETUP
    configs = [dict(zip(OPTIONS, row, strict=True)) for row in SMOLLM2_OPTIONS]
    found = [run(model, setup, config) for config in configs]
    assert robust(model, setup, configs, found, run, amplitude), "choose another prompt"
    return record(setup | {"noise": amplitude}, configs, found)


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf")
    parser.add_argument("--only", nargs="*", default=[*TINY, "smollm2"])
    parser.add_argument("--noise", type=float, default=NOISE)
    arguments = parser.parse_args()
    for name in arguments.only:
        if name == "smollm2":
            entry = record_smollm2(arguments.gguf, arguments.noise)
        else:
            entry = record_tiny(name, arguments.noise)
        update(DATA / "beam_search.json", name, entry)


if __name__ == "__main__":
    main()
