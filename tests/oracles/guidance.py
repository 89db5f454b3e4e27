"""Classifier-free guidance of transformers, greedy: token ids for several negative prompts.

Prompts are searched until no argmax of the guided scores is a near tie and until the ids depend on
the guidance scale and on the negative prompt. Writes tests/data/guidance.json.

    python tests/oracles/guidance.py
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tiny_models import VOCAB, build
from transformers import PreTrainedModel

DATA = Path(__file__).parents[1] / "data"
TINY = ("llama", "gpt2", "opt", "mpt", "gemma3", "bloom")
SCALES = (1.5, 3.0)
PROMPT_LENGTH = 12
NEGATIVE_LENGTHS = (5, 20)
NEW_TOKENS = 12
MIN_MARGIN = 5e-3  # of the guided scores, several times what scale 3 makes of float noise
MIN_DISTINCT = 7  # of the 12 tokens
MAX_TRIALS = 2000


def guided(
    model: PreTrainedModel, prompt: list[int], negative: list[int] | None, scale: float
) -> tuple[list[int], float]:
    """The tokens and the smallest top-1 to top-2 gap of the guided scores."""
    negative_ids = None if negative is None else torch.tensor([negative])
    result = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        negative_prompt_ids=negative_ids,
        negative_prompt_attention_mask=None if negative is None else torch.ones_like(negative_ids),
        guidance_scale=scale,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    top = torch.stack(result.scores)[:, 0].topk(2).values
    return result.sequences[0, len(prompt) :].tolist(), float((top[:, 0] - top[:, 1]).min())


@torch.no_grad()
def without_cache(
    model: PreTrainedModel, prompt: list[int], negative: list[int] | None, scale: float
) -> list[int]:
    """The same tokens by the formula, every position computed anew."""
    tokens: list[int] = []
    for _ in range(NEW_TOKENS):
        rows = [
            model(torch.tensor([start + tokens])).logits[0, -1].log_softmax(-1)
            for start in (prompt, negative or prompt[-1:])
        ]
        tokens.append(int((scale * (rows[0] - rows[1]) + rows[1]).argmax()))
    return tokens


def attempt(model: PreTrainedModel, generator: np.random.Generator) -> dict[str, Any] | None:
    """The records of random prompts, or None if one is a near tie, a loop or without effect."""
    prompt = generator.integers(4, VOCAB, PROMPT_LENGTH).tolist()
    negatives = [generator.integers(4, VOCAB, size).tolist() for size in NEGATIVE_LENGTHS]
    records, margins = [], []
    for scale in SCALES:
        for negative in (None, *negatives):
            tokens, margin = guided(model, prompt, negative, scale)
            good = len(tokens) == NEW_TOKENS and min(tokens) >= 4
            if not good or margin < MIN_MARGIN or len(set(tokens)) < MIN_DISTINCT:
                return None
            assert tokens == without_cache(model, prompt, negative, scale)
            records.append({"guidance_scale": scale, "negative": negative, "tokens": tokens})
            margins.append(margin)
    plain, _ = guided(model, prompt, None, 1.0)
    results = {tuple(plain)} | {tuple(row["tokens"]) for row in records}
    if len(results) <= len(records):
        return None
    head = {"transformers": transformers.__version__, "min_margin": round(min(margins), 5)}
    return head | {"prompt": prompt, "max_new_tokens": NEW_TOKENS, "records": records}


def main() -> None:
    torch.set_num_threads(1)
    seeds = json.loads((DATA / "tiny_models.json").read_text())
    lines = []
    for name in TINY:
        model = build(name, seeds[name]["seed"])
        generator = np.random.default_rng(0)
        entry = None
        for trial in range(MAX_TRIALS):
            entry = attempt(model, generator)
            if entry is not None:
                print(f"{name}: trial {trial}, min margin {entry['min_margin']}", flush=True)
                break
        if entry is None:
            raise SystemExit(f"{name}: no robust prompts")
        lines.append(f"{json.dumps(name)}: {json.dumps(entry)}")
        (DATA / "guidance.json").write_text("{\n" + ",\n".join(sorted(lines)) + "\n}\n")


if __name__ == "__main__":
    main()
