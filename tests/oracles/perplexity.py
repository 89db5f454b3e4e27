"""Perplexity, prompt log-probabilities and scores of continuations of SmolLM2 in float32.

The weights are those of smollm2_reference.py; the ids are by ovgen's own tokenizer, which the tests
hold equal to llama.cpp's. Writes tests/data/perplexity.json.

    python tests/oracles/perplexity.py smollm2.gguf IR_FOLDER      (with ovgen installed)
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from smollm2_reference import DATA, load
from transformers import LlamaForCausalLM

from ovgen.text.tokenizer import load_tokenizer

SEPARATOR = "\n\n"
REPEATED = 2
WINDOWS = ((1024, 512), (2048, 1024))  # max_length, stride
TOP = 5
MARGIN = 1e-3
PROMPT_TOKENS = 40
PROMPT = "The capital of France is"
CONTINUATIONS = (
    " Paris.",
    " Paris, and it is also the country's largest city.",
    " a city that nobody at the table had ever visited, except for the old clockmaker.",
    " London",
    "land of Ireland",  # its first letters become one token with the end of the prompt
)


def corpus() -> str:
    """Every text of tests/data/corpus in the order of the names, REPEATED times."""
    paths = sorted((DATA / "corpus").glob("*.txt"))
    return SEPARATOR.join([path.read_text(encoding="utf-8") for path in paths] * REPEATED)


@torch.no_grad()
def log_probs(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    """Of the next token at every position, [length, vocab] float64."""
    return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def targets(rows: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """The log-probability of every id but the first."""
    return rows[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def perplexity(
    model: LlamaForCausalLM, ids: list[int], max_length: int, stride: int
) -> dict[str, Any]:
    """Hugging Face's sliding window: each step scores the tokens no window before it has scored."""
    total, count, windows, scored = 0.0, 0, 0, 0
    for begin in range(0, len(ids), stride):
        window = ids[begin : begin + max_length]
        end = begin + len(window)
        new = min(end - scored, len(window) - 1)  # the first token of all has no context
        total -= float(targets(log_probs(model, window), window)[-new:].sum())
        count, windows, scored = count + new, windows + 1, end
        if end == len(ids):
            break
    assert count == len(ids) - 1
    result = {"max_length": max_length, "stride": stride, "windows": windows, "num_tokens": count}
    return result | {"nll": round(total, 4), "perplexity": round(math.exp(total / count), 6)}


def prompt_record(model: LlamaForCausalLM, ids: list[int]) -> dict[str, Any]:
    """For every id but the first: its log-probability, the TOP best, and the ranks it may have.

    A rank is one more than the number of ids above; those closer than MARGIN may count or not.
    """
    rows = log_probs(model, ids)
    logprobs = targets(rows, ids)
    top = rows[:-1].topk(TOP + 1)
    assert float((top.values[:, :-1] - top.values[:, 1:]).min()) > MARGIN, "another text"
    own = logprobs[:, None]
    best, worst = ((rows[:-1] > own + shift).sum(-1) for shift in (MARGIN, -MARGIN))
    return {
        "ids": ids,
        "logprobs": [round(value, 6) for value in logprobs.tolist()],
        "ranks": list(zip((best + 1).tolist(), worst.tolist(), strict=True)),
        "top_ids": top.indices[:, :TOP].tolist(),
        "top_logprobs": [[round(value, 6) for value in row[:TOP]] for row in top.values.tolist()],
    }


def score_record(model: LlamaForCausalLM, prompt: list[int], whole: list[int]) -> dict[str, Any]:
    """The continuation: what follows the ids that the two encodings share at the start."""
    pairs = zip(prompt, whole, strict=False)
    start = next((i for i, (own, other) in enumerate(pairs) if own != other), len(prompt))
    logprobs = targets(log_probs(model, whole), whole)[start - 1 :].tolist()
    return {
        "ids": whole[start:],
        "logprobs": [round(value, 6) for value in logprobs],
        "logprob": round(sum(logprobs), 6),
    }


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.folder)
    model = load(arguments.gguf)
    ids = tokenizer.encode(corpus())
    prompt = tokenizer.encode(PROMPT)
    parts = {
        "transformers": transformers.__version__,
        "separator": SEPARATOR,
        "repeated": REPEATED,
        "perplexity": [perplexity(model, ids, *window) for window in WINDOWS],
        "prompt_logprobs": prompt_record(model, ids[:PROMPT_TOKENS]),
        "prompt": PROMPT,
        "prompt_ids": prompt,
        "continuations": [
            {"text": text} | score_record(model, prompt, tokenizer.encode(PROMPT + text))
            for text in CONTINUATIONS
        ],
        "ids": ids,
    }
    for row in parts["perplexity"]:
        print(row)
    for row in parts["continuations"]:
        print(row["text"], row["logprob"], row["ids"])
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in parts.items())
    (DATA / "perplexity.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
