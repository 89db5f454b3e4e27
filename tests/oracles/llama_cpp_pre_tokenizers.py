"""Record how llama.cpp cuts the strings of the tokenizer tests, for each kind of pre-tokenizer.

    python tests/oracles/llama_cpp_pre_tokenizers.py

needs llama-cpp-python. A small vocabulary is made of the strings' own byte pairs and triples, so
that nearly every cut shows in the ids. Writes tests/export/data/llama_cpp_pre_tokenizers.json: a
digest of the ids of each string, in the order of tokenizer_strings.json.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path

DATA = Path(__file__).parent.parent / "export" / "data"

# One name of each kind; the other names of the kind behave the same.
KINDS = [
    "default", "falcon", "gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35", "deepseek-llm",
    "deepseek-coder", "deepseek-v3", "gpt-4o", "tekken", "bloom", "viking", "bailingmoe",
    "seed-coder", "glm4", "spark2_5", "exaone-moe", "jais-2", "minicpm5", "laguna",
    "ufakzeka", "tiny_aya",
]  # fmt: skip
SPECIAL = ["<|im_start|>", "<|im_end|>"]
NORMAL, CONTROL = 1, 3


def byte_letters() -> list[str]:
    """The letter that GPT-2 writes for each byte: itself where printable, else one from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def vocabulary(texts: list[str]) -> tuple[list[str], list[str]]:
    """Tokens and merges: all bytes, then the pairs and triples of `texts`, frequent ones first."""
    letters = byte_letters()
    counts: Counter[str] = Counter()
    for text in texts:
        word = "".join(letters[byte] for byte in text.encode())
        for size in (2, 3):
            counts.update(word[i : i + size] for i in range(len(word) - size + 1))
    grams = sorted(counts, key=lambda gram: (len(gram), -counts[gram], gram))
    return letters + grams + SPECIAL, [f"{gram[:-1]} {gram[-1]}" for gram in grams]


def write_gguf(path: Path, pre: str, tokens: list[str], merges: list[str]) -> None:
    """A GGUF file that holds nothing but a byte-level BPE vocabulary."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def texts(values: list[str]) -> bytes:
        return struct.pack("<IQ", 8, len(values)) + b"".join(map(text, values))

    types = [CONTROL if token in SPECIAL else NORMAL for token in tokens]
    entries = [
        ("general.architecture", 8, text("llama")),
        ("tokenizer.ggml.model", 8, text("gpt2")),
        ("tokenizer.ggml.pre", 8, text(pre)),
        ("tokenizer.ggml.tokens", 9, texts(tokens)),
        ("tokenizer.ggml.merges", 9, texts(merges)),
        ("tokenizer.ggml.token_type", 9, struct.pack(f"<IQ{len(types)}i", 5, len(types), *types)),
        ("tokenizer.ggml.bos_token_id", 4, struct.pack("<I", tokens.index(SPECIAL[0]))),
        ("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", tokens.index(SPECIAL[1]))),
    ]
    body = b"".join(text(key) + struct.pack("<I", kind) + data for key, kind, data in entries)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + body)


def digest(ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:4]


def main() -> None:
    from llama_cpp import Llama

    texts = json.loads((DATA / "tokenizer_strings.json").read_text(encoding="utf-8"))["strings"]
    tokens, merges = vocabulary(texts)
    record = {}
    with tempfile.TemporaryDirectory() as folder:
        for pre in KINDS:
            path = Path(folder) / f"{pre}.gguf"
            write_gguf(path, pre, tokens, merges)
            llama = Llama(str(path), vocab_only=True, verbose=False)
            ids = [llama.tokenize(text.encode(), add_bos=False, special=True) for text in texts]
            record[pre] = "".join(map(digest, ids))
    content = json.dumps(record, indent=0)
    (DATA / "llama_cpp_pre_tokenizers.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
