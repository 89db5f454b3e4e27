"""The vocabularies of real models that llama.cpp's sources hold, against llama.cpp itself.

On the strings of the tokenizer tests and on random ones. Needs llama-cpp-python beside ovgen, and
in LLAMA_CPP the folder of llama.cpp's sources: marker `oracle`.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ovgen.export.gguf import open_gguf
from ovgen.export.tokenizer import export_tokenizer

DATA = Path(__file__).parent / "data"
NAMES = (
    "aquila", "baichuan", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gpt-2",
    "gpt-neox", "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
)  # fmt: skip
# Latin, Greek and Cyrillic, Hebrew and Arabic, scripts of India, kana, Han, Hangul, emoji,
# punctuation, and spaces, tabs and line ends of all sorts.
SCRIPTS = (
    range(0x20, 0x7F), range(0xA0, 0x250), range(0x370, 0x530), range(0x590, 0x700),
    range(0x900, 0xE00), range(0x3040, 0x3100), range(0x4E00, 0x5000), range(0xAC00, 0xAD00),
    range(0x1F300, 0x1F650), range(0x2000, 0x2070), (9, 10, 13, 32, 32, 32, 0x3000, 0x85, 0xA0),
)  # fmt: skip


def strings() -> list[str]:
    rng = random.Random(5)
    texts = json.loads((DATA / "tokenizer_strings.json").read_text(encoding="utf-8"))["strings"]
    for _ in range(1500):
        scripts = [SCRIPTS[0], *rng.sample(SCRIPTS, rng.randint(1, 3))]
        length = rng.randint(1, 24)
        texts.append("".join(chr(rng.choice(rng.choice(scripts))) for _ in range(length)))
    return texts


def is_excused(name: str, text: str) -> bool:
    """What llama.cpp does on purpose otherwise than the model's own tokenizer."""
    if name == "deepseek-llm":
        return any(ord(c) >= 0x80 and c.isspace() for c in text)
    return name.startswith("qwen") and "</s>" in text  # a plain token there


@pytest.mark.oracle
@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    if "LLAMA_CPP" not in os.environ:
        pytest.skip("LLAMA_CPP must name the folder of llama.cpp's sources")
    path = Path(os.environ["LLAMA_CPP"]) / "models" / f"ggml-vocab-{name}.gguf"
    llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    with open_gguf(path) as file:
        export_tokenizer(file, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    differing = [
        text
        for text in strings()
        if tokenizer.encode(text, add_special_tokens=False).ids
        != llama.tokenize(text.encode(), add_bos=False, special=True)
    ]
    assert [text for text in differing if not is_excused(name, text)] == []
    assert tokenizer.encode("hello").ids == llama.tokenize(b"hello", add_bos=True, special=True)
