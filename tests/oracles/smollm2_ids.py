"""Tokenize the SmolLM2 prompts and the KL texts with llama.cpp into tests/data/smollm2_ids.json.

python tests/oracles/smollm2_ids.py smollm2.gguf      (needs llama-cpp-python)
"""

import argparse
import json
from pathlib import Path

import llama_cpp

WINDOW = 512
DATA = Path(__file__).parents[1] / "data"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chat(question: str) -> str:
    """The model's own chat template, rendered by hand."""
    return (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


PROMPTS = {
    "chat_capital": chat("What is the capital of France?"),
    "code": 'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "list": "Things to pack for a week in the mountains:\n\n1. A warm jacket\n2.",
    "story": "Once upon a time, in a village by the sea, there lived a clockmaker who",
    "french": "La tour Eiffel est un monument situé à Paris. Elle a été construite",
    "numbers": "1, 1, 2, 3, 5, 8, 13, 21, 34,",
    "json": '{\n  "name": "Ada Lovelace",\n  "born": 1815,\n  "profession": "mathematician",\n ',
    "long": (DATA / "corpus" / "harbour.txt").read_text(encoding="utf-8")[:1000],
}
TEXTS = ("alice", "harbour", "python", "mixed_code")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf")
    arguments = parser.parse_args()
    model = llama_cpp.Llama(arguments.gguf, vocab_only=True, verbose=False)

    def encode(text: str) -> list[int]:
        return model.tokenize(text.encode(), add_bos=False, special=True)

    windows = {}
    for name in TEXTS:
        ids = encode((DATA / "corpus" / f"{name}.txt").read_text(encoding="utf-8"))
        assert len(ids) >= WINDOW, (name, len(ids))
        windows[name] = ids[:WINDOW]
    prompts = [{"name": n, "text": t, "ids": encode(t)} for n, t in PROMPTS.items()]
    record = {"prompts": prompts, "windows": windows}
    (DATA / "smollm2_ids.json").write_text(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
