"""Record llama.cpp's token ids of many awkward strings for the two GGUF files of the tests.

    python tests/oracles/llama_cpp_tokens.py smollm2=PATH.gguf gemma3=PATH.gguf

needs llama-cpp-python. Writes tests/export/data/tokenizer_strings.json and, for each file,
tests/export/data/llama_cpp_tokens_NAME.json with the ids without and the ids that bos adds.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

DATA = Path(__file__).parent.parent / "export" / "data"

WORDS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\t\t", " \n", "\n ", " \t \n", "a", " a", "a ",
    "Hello", "Hello world", " Hello world ", "  Hello  world  ", "Hello\nworld", "Hello\r\nworld\r\n",
    "The capital of France is Paris.", "What is the capital of France?", "hello,world;foo:bar",
    "don't", "DON'T", "Don't", "I'm you're he'd they'll we've it's", "I'M YOU'RE HE'D THEY'LL WE'VE IT'S",
    "'s 't 're 've 'm 'll 'd", "''s", "rock'n'roll", "o'clock", "'tis", "dogs'", "x's", "x'S", "l’été", "don’t",
    "\u017ft", "'\u017f", "it'\u017f", "'\u212a",
    "1", "12", "123", "1234", "12345", "1234567890", "1,234,567.89", "1_000_000", "3.14159", "-42", "+1", "1e10",
    "0x1F", "2024-01-31", "10:45:00", "192.168.0.1", "50%", "$9.99", "€1.000,00", "½ ¾ ⅓", "²³¹", "Ⅷ ⅻ", "①②③",
    "٠١٢٣٤", "०१२३", "一二三四", "𝟘𝟙𝟚", "a1b2c3", "abc123def456", "v1.2.3-rc4", " 1", "  1", " 12 345", "1 2  3   4",
    "def f(x):\n    return x + 1\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n", "\tif (a && b) { c(); }",
    "if x == 1:\n\tprint('a')\nelse:\n\tprint(\"b\")\n", "SELECT * FROM t WHERE a >= 3 AND b <> 'x';",
    "<html><body><h1>Title</h1><p>a &amp; b</p></body></html>", "{\"key\": [1, 2.5, null, true]}", "a->b->c", "x != y",
    "std::vector<std::string>", "#include <stdio.h>", "//comment", "/* c */", "# heading\n\n- item\n  - sub\n",
    "```python\nprint(1)\n```", "http://example.com/a?b=c&d=e#f", "user@example.org", "C:\\Windows\\System32", "/usr/bin/env",
    "$HOME/${VAR}", "a\\nb", "\\u00e9", "camelCaseWord", "snake_case_word", "SCREAMING_CASE", "kebab-case-word", "x=1;y=2",
    "λ x → y", "∀x∈ℝ: x²≥0", "∑∏∫√∞≈≠", "a≤b≥c", "ℏ=h/2π", "→←↑↓", "─│┌┐", "█▓▒░", "★☆✓✗",
    "😀", "😀😀", " 😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷🇩🇪", "❤️", "❤", "☺️", "👩🏿‍🚀", "🧑‍💻 codes", "a😀b", "😀1", "1️⃣", "🫠🫨🪿",
    "é", "e\u0301", "naïve café", "nai\u0308ve cafe\u0301", "ñ", "n\u0303", "Å", "Å", "A\u030a", "ﬁ", "ﬀ", "ß", "ẞ", "İi", "ıI",
    "z̷a̴l̸g̵o̶", "a\u0300\u0301\u0302\u0303", "\u0301", " \u0301a", "ö\u0308",
    "Ünïcödé", "Привет, мир!", "привет", "Добрый день", "Ελληνικά", "Ἀρχιμήδης", "Հայերեն", "ქართული", "שלום עולם",
    "שָׁלוֹם", "مرحبا بالعالم", "السَّلَامُ عَلَيْكُمْ", "سلام دنیا", "اردو", "\u200fabc\u200e", "abc שלום def", "مرحبا 123 hello",
    "हिन्दी", "नमस्ते दुनिया", "বাংলা", "தமிழ்", "తెలుగు", "ಕನ್ನಡ", "മലയാളം", "ไทย", "สวัสดีชาวโลก", "ລາວ", "မြန်မာ", "ខ្មែរ", "አማርኛ", "ᏣᎳᎩ",
    "中文", "你好，世界！", "今天天气很好。", "繁體中文", "日本語", "こんにちは世界", "カタカナ", "ｶﾀｶﾅ", "ひらがなとカタカナ", "東京タワー", "한국어", "안녕하세요 세계",
    "ㄱㄴㄷ", "각", "각", "㍿", "㋿", "Ａｂｃ１２３", "！？", "「引用」", "、。", "〜ー", "𠮷野家", "𠀀𪛖", "龘", "𝕳𝖊𝖑𝖑𝖔", "𐍈", "𓀀", "🀄", "𝄞",
    "Tiếng Việt", "Việt Nam có 54 dân tộc", "İstanbul'da", "Çeşme", "žluťoučký kůň", "Łódź", "Größe", "smörgåsbord", "Þórr",
    "\u00a0", "a\u00a0b", "\u3000", "a\u3000b", "\u2003x", "\u2028", "a\u2028b", "\u2029", "\u0085", "a\u0085b", "\u1680", "\u202f5", "\u205f",
    "\u200b", "a\u200bb", "\u200d", "\u200c", "\ufeff", "\ufeffabc", "\u2060", "\u00ad", "\u180e", "\u061c",
    "\x00", "a\x00b", "\x01\x02\x03", "\x07", "\x08", "\x0b", "\x0c", "a\x0bb", "\x1b[31mred\x1b[0m", "\x1c\x1d\x1e\x1f", "\x7f", "\x80\x9f",
    "\ufffd", "\ufffe", "\uffff", "\ue000", "\U0010ffff", "\U000e0001", "\ufdd0", "\u0378", "\U0001fbff",
    "▁", "▁▁", " ▁", "a▁b", "▁Hello", "Ġ", "ĠHello", "Ċ", "ĉ", "âĢ", "Ã©", "<0x0A>", "<0x00>", "<0xFF>x", "0x0A", "<0x",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "a<|endoftext|>b",
    " <|im_end|> ", "<|im_end|><|im_end|>", "<|im_end", "|im_end|>", "<<|im_end|>>", "<|im_start|> system", "<|IM_END|>", "<file_sep>x",
    "<repo_name>a/b<file_sep>c.py\n", "<empty_output>", "<jupyter_start>", "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<bos>Hi", "Hi<eos>",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "<start_of_turn>", "<end_of_turn>", " <end_of_turn>", "<end_of_turn> x",
    "<unused0>", "<unused99>", "<unused6241>", "[multimodal]", "<start_of_image>", "<table><tr><td>1</td></tr></table>", "<s>x</s>", "</s>", "<b>bold</b>",
    "<em>a</em> <u>b</u>", "<strong>", "<h7>", "<|eot_id|>", "<unk", "unk>", "[INST] x [/INST]", "<<SYS>>",
    "\n\n\n", "\n" * 31, "\n" * 32, "\n" * 40, "\t" * 5, "\t" * 31, "\t" * 40, " " * 4, " " * 8, " " * 15, " " * 16, " " * 17, " " * 31, " " * 32,
    " " * 33, " " * 64, " " * 100, "a" + " " * 7 + "b", "a" + " " * 40 + "b", "  \n  \n", "\n  \n  x", "\t \t ", " \t\n\r ", "x\n\n\n\ny", "x \n\n y", "\r", "\r\r", "\n\r",
    "a" * 2, "a" * 3, "a" * 5, "a" * 17, "a" * 100, "a" * 1000, "ab" * 50, "abc" * 33, "=" * 3, "=" * 10, "=" * 80, "-" * 7, "-" * 40, "." * 3, "." * 11, "*" * 9,
    "#" * 6, "_" * 12, "!" * 5, "?!" * 6, "0" * 20, "1" * 50, "😀" * 9, "é" * 9, "的" * 20, "ха" * 12, "lol" * 9, "\u0301" * 5, "ب" * 7,
    "antidisestablishmentarianism", "pneumonoultramicroscopicsilicovolcanoconiosis", "Donaudampfschifffahrtsgesellschaftskapitän",
    "lopadotemachoselachogaleokranioleipsano", "supercalifragilisticexpialidocious" * 3, "xyzzyqwrtpsdfghjklzxcvbnm", "QWERTYUIOPASDFGHJKL",
    "aAbBcCdDeE", "iPhone iOS macOS", "U.S.A.", "e.g., i.e., etc.", "Dr. Smith's", "(a)[b]{c}<d>", "\"quoted\"", "“curly” ‘quotes’", "a—b–c-d", "…", "...",
    "#hashtag @mention", "a/b/c", "a|b", "a&b", "100°C", "©®™", "£¥€$¢", "±×÷", "µm", "№ 5", "§ 3", "¿Qué?", "¡Hola!", "«texte»", "„Zitat“",
    "Once upon a time, in a land far away, there lived a king who had three daughters.",
    "Water boils at 100 °C (212 °F) at sea level; at 3,000 m it's only ≈ 90 °C.",
]  # fmt: skip

PIECES = [
    *"abcXYZ 019.,'-_\n\t ", "  ", "    ", " the", "ing", "é", "ü", "я", "ж", "ע", "م", "中", "の", "한", "😀", "👍🏽", "\u200d",
    "\u0301", "\u00a0", "'s", "'LL", "123", "def ", "()", "{\n", "<|im_end|>", "<end_of_turn>", "\r\n", "▁", "<b>", "=="
]  # fmt: skip


def strings() -> list[str]:
    """The hand-written strings and 160 random joins of pieces; always the same."""
    rng = random.Random(20240229)
    made = ["".join(rng.choices(PIECES, k=rng.randint(2, 24))) for _ in range(160)]
    return list(dict.fromkeys(WORDS + made))


def record(path: str, texts: list[str]) -> dict[str, list[object]]:
    from llama_cpp import Llama

    llama = Llama(path, vocab_only=True, verbose=False)
    ids = [llama.tokenize(text.encode(), add_bos=False, special=True) for text in texts]
    with_bos = llama.tokenize(b"x", add_bos=True, special=True)
    plain = llama.tokenize(b"x", add_bos=False, special=True)
    assert with_bos[len(with_bos) - len(plain) :] == plain
    return {"prefix": with_bos[: len(with_bos) - len(plain)], "ids": ids}


def write(name: str, content: dict[str, list[object]]) -> None:
    """One list item a line, so that a change shows as one."""
    parts = []
    for key, value in content.items():
        items = ",\n".join(json.dumps(item, separators=(",", ":")) for item in value)
        parts.append(f'"{key}": [\n{items}\n]')
    (DATA / name).write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


if __name__ == "__main__":
    texts = strings()
    write("tokenizer_strings.json", {"strings": texts})
    for argument in sys.argv[1:]:
        name, path = argument.split("=", 1)
        write(f"llama_cpp_tokens_{name}.json", record(path, texts))
    print(len(texts), "strings")
