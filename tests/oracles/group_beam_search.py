"""Group (diverse) beam search of transformers 4.56, the last with it built in.

Written like beam_search.py's records, and as robust. transformers puts its first EOS after every
hypothesis that ended, whichever EOS ended it: so sequences are without their EOS, and `ended` tells
which had one. Writes tests/data/group_beam_search.json.

    python tests/oracles/group_beam_search.py [--only llama]      (transformers==4.56.2)
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from beam_search import DATA, NOISE, Results, eos_of, generate, record, search, update
from tiny_models import build
from transformers import PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2PreTrainedModel

TINY = ("llama", "qwen2", "gpt2")
# A finished group's padding counts in the diversity of later groups: no result may depend on it.
PADS = (0, 3)
OPTIONS: dict[str, tuple] = {
    "num_beams": ((4, 2), (6, 3), (6, 2), (4, 4)),  # and num_beam_groups
    "diversity_penalty": (0.5, 2.0),
    "early_stopping": (True, False, "never"),
    "length_penalty": (1.0, 0.0),
    "repetition_penalty": (1.0, 1.3),
    "num_eos": (1, 2),
}


@contextmanager
def as_transformers_5_initializes() -> Iterator[None]:
    """GPT-2's output projections drawn once, not twice: `build` goes on with the same generator."""
    original = GPT2PreTrainedModel._init_weights

    def once(self: GPT2PreTrainedModel, module: torch.nn.Module) -> None:
        if not isinstance(module, GPT2Attention | GPT2MLP):
            original(self, module)

    GPT2PreTrainedModel._init_weights = once
    try:
        yield
    finally:
        GPT2PreTrainedModel._init_weights = original


def tiny(name: str) -> PreTrainedModel:
    """The very checkpoint of tiny_models.py."""
    made = json.loads((DATA / "tiny_models.json").read_text())[name]
    with as_transformers_5_initializes():
        model = build(name, made["seed"])
    with np.load(DATA / "tiny_models.npz") as logits, torch.no_grad():
        for prompt, wanted in zip(made["prompts"], logits[name], strict=True):
            row = model(torch.tensor([prompt])).logits[0, -1].numpy()
            np.testing.assert_allclose(row, wanted, atol=1e-4, rtol=0)
    return model


def run(
    model: PreTrainedModel, setup: dict[str, Any], config: dict[str, Any], pad: int = PADS[0]
) -> Results:
    """All hypotheses of one configuration, each without its EOS, and whether it had one."""
    eos = eos_of(setup, config)
    beams, groups = config["num_beams"]
    options = {key: value for key, value in config.items() if key not in ("num_beams", "num_eos")}
    rows, scores = generate(
        model,
        setup["prompt"],
        num_beams=beams,
        num_beam_groups=groups,
        num_return_sequences=beams,
        eos_token_id=eos,
        pad_token_id=pad,
        max_new_tokens=setup["max_new_tokens"],
        **options,
    )
    results = []
    for row, score in zip(rows, scores, strict=True):
        ended = eos[0] in row
        tokens = row[: row.index(eos[0])] if ended else row
        assert ended or len(tokens) == setup["max_new_tokens"], row
        results.append((tokens, score, ended))
    assert scores == sorted(scores, reverse=True), scores
    return results


def record_tiny(name: str) -> dict[str, Any]:
    model = tiny(name)

    def any_pad(setup: dict, configs: list[dict], found: list[Results]) -> bool:
        pairs = zip(configs, found, strict=True)
        return all(run(model, setup, config, PADS[1]) == results for config, results in pairs)

    setup, configs, found = search(name, model, OPTIONS, run, "eos_two", NOISE, any_pad)
    for config in configs:
        config["num_beams"], config["num_beam_groups"] = config["num_beams"]
    entry = record(setup | {"noise": NOISE}, configs, found)
    for item, results in zip(entry["records"], found, strict=True):
        item["ended"] = [ended for *_, ended in results]
    return entry


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=TINY)
    for name in parser.parse_args().only:
        update(DATA / "group_beam_search.json", name, record_tiny(name))


if __name__ == "__main__":
    main()
