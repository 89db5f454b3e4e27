"""How each byte-level BPE vocabulary cuts its text into words, by `tokenizer.ggml.pre`.

The names are llama.cpp's. A text is split by one pattern after the other, each over the pieces the
one before left; matches and gaps both stay pieces. Where llama.cpp's regex engine forced it to
approximate a model's own pattern, the model's own is used: letter case and marks in gpt-4o and
tekken, letter case and the surroundings of digits in tiny_aya, white space beyond ASCII in the
deepseek ones.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """The split patterns of a vocabulary, and the defaults that go with its name."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token is that token, whatever the merges say
    add_bos: bool = False  # unless the file has its own add_bos_token


# Spelled out: (?i:'s) would also match U+017F, the long s, which llama.cpp does not.
_CONTRACTION = r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_WORD = _LEAD + r"\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+"
_SPACES = r"\s+(?!\S)|\s+"
_LINES_AND_SPACES = r"\s*[\r\n]+|" + _SPACES
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ASCII_SYMBOL = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_THREE_DIGITS = "[0-9][0-9][0-9]"


def _any_of(*patterns: str) -> str:
    return "|".join(patterns)


_GPT2 = _any_of(r"'(?:[sdmt]|ll|ve|re)", r" ?\p{L}+", r" ?\p{N}+", _SYMBOLS, _SPACES)
_LLAMA3 = _any_of(_CONTRACTION, _WORD, r"\p{N}{1,3}", _SYMBOLS + r"[\r\n]*", _LINES_AND_SPACES)
_QWEN2 = _any_of(_CONTRACTION, _WORD, r"\p{N}", _SYMBOLS + r"[\r\n]*", _LINES_AND_SPACES)
_QWEN35 = _any_of(
    _CONTRACTION,
    _LEAD + r"[\p{L}\p{M}]+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    _LINES_AND_SPACES,
)
_BAILING = _any_of(_CONTRACTION, _WORD, r"\p{N}", _SYMBOLS + r"[\r\n]*", r"\s*[\r\n]", _SPACES)
_SEED_CODER = _any_of(_CONTRACTION, _WORD, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", _LINES_AND_SPACES)
_GPT4O = _any_of(
    f"{_LEAD}{_UPPER}*{_LOWER}+(?:{_CONTRACTION})?",
    f"{_LEAD}{_UPPER}+{_LOWER}*(?:{_CONTRACTION})?",
    r"\p{N}{1,3}",
    _SYMBOLS + r"[\r\n/]*",
    _LINES_AND_SPACES,
)
_TEKKEN = _any_of(
    f"{_LEAD}{_UPPER}*{_LOWER}+",
    f"{_LEAD}{_UPPER}+{_LOWER}*",
    r"\p{N}",
    _SYMBOLS + r"[\r\n/]*",
    _LINES_AND_SPACES,
)
_EXAONE_MOE = _any_of(
    _CONTRACTION,
    _LEAD + r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
    r"\p{N}",
    _SYMBOLS + r"[\r\n/]?",
    r"\s*[\r\n]",
    _SPACES,
)
# White space in powers of two, each but the last followed by more of it.
_JAIS2_SPACES = _any_of(*(rf"\s{{{2**i}}}(?!\S)" for i in range(9, 1, -1)), r"\s{1,2}(?!\S)", r"\s")
_JAIS2 = _any_of(
    _CONTRACTION, _WORD, r"\p{N}{1,3}", _SYMBOLS + r"[\r\n]*", r"\s*[\r\n]+", _JAIS2_SPACES
)
_MINICPM5 = _any_of(_CONTRACTION, _WORD, r"\p{N}+", _SYMBOLS + r"[\r\n]*", _LINES_AND_SPACES)
_UFAKZEKA = _any_of(_WORD, r"\p{N}", _SYMBOLS + r"[\r\n]*", _LINES_AND_SPACES)
_SPARK = _any_of(
    _ASCII_SYMBOL + "[A-Za-z]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r" ?[\p{P}\p{S}]+",
    r"[\r\n]",
    _SPACES,
)
_DEEPSEEK3 = _any_of(
    _ASCII_SYMBOL + "[A-Za-z]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r" ?[\p{P}\p{S}]+[\r\n]*",
    _LINES_AND_SPACES,
)
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# The cased letters but for those of scripts that DeepSeek's own list of ranges leaves out.
_DEEPSEEK_LETTER = (
    r"(?![\x{560}-\x{588}\x{10C7}-\x{10FF}\x{1C80}-\x{1C88}\x{2D00}-\x{2D2D}\x{A790}-\x{AB68}"
    r"\x{10570}-\x{105BB}\x{16E40}-\x{16E7F}\x{1D400}-\x{1DF1E}])[\p{Lu}\p{Ll}\p{Lt}]"
)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_THOUSANDS = r"\d{1,3}(?=(?:\d{3})*\b)"  # digits in threes from the right

_DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", _THREE_DIGITS))
_FALCON = PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, _THREE_DIGITS))
_DEEPSEEK_CODER = PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}"))
_DEEPSEEK_LLM = PreTokenizer(
    (
        r"[\r\n]",
        rf"\s?(?:{_DEEPSEEK_LETTER})+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+$",
        _DEEPSEEK_CJK,
        r"\p{N}+",
    )
)

_GROUPS: tuple[tuple[PreTokenizer, tuple[str, ...]], ...] = (
    (_DEFAULT, ("default",)),
    (_FALCON, ("falcon",)),
    (
        PreTokenizer((_GPT2,)),
        ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4",
         "gigachat", "a.x-4.0", "mellum"),
    ),
    (
        PreTokenizer((r"\p{N}", _GPT2)),
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
         "mellum2"),
    ),
    (
        PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
         "jina-v5-nano"),
    ),
    (PreTokenizer((_LLAMA3,)), ("dbrx", "smaug-bpe", "chatglm-bpe")),
    (PreTokenizer((_LLAMA3,), ignore_merges=True), ("glm4", "glm5")),
    (
        PreTokenizer((_QWEN2,)),
        ("qwen2", "deepseek-r1-qwen", "stablelm2", "kormo", "f2llmv2", "megrez", "hunyuan",
         "solar-open", "grok-2"),
    ),
    (PreTokenizer((_QWEN35,)), ("qwen35",)),
    (_DEEPSEEK_LLM, ("deepseek-llm",)),
    (_DEEPSEEK_CODER, ("deepseek-coder",)),
    (
        PreTokenizer((r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK3)),
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
    ),
    (PreTokenizer((r"\p{N}{1,3}", _HAN_AND_KANA, _SPARK, r"\p{N}")), ("spark2_5",)),
    (PreTokenizer((_GPT4O,)), ("gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie")),
    (PreTokenizer((_THOUSANDS, _GPT4O)), ("tiny_aya", "cohere2moe")),
    (PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True), ("tekken",)),
    (PreTokenizer((_BLOOM,)), ("bloom", "poro-chat", "gpt3-finnish")),
    (PreTokenizer((_BLOOM, r"\p{N}")), ("viking",)),
    (PreTokenizer((_BAILING,)), ("bailingmoe", "bailingmoe2", "llada-moe")),
    (PreTokenizer((_SEED_CODER,)), ("seed-coder",)),
    (PreTokenizer((_EXAONE_MOE,)), ("exaone-moe",)),
    (PreTokenizer((_JAIS2,)), ("jais-2",)),
    (PreTokenizer((r"\p{N}{1,3}", _MINICPM5), ignore_merges=True), ("minicpm5",)),
    (PreTokenizer((r"[^\n]+|\n+", _QWEN2)), ("laguna",)),
    (PreTokenizer((_UFAKZEKA,)), ("ufakzeka",)),
)  # fmt: skip

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    name: pre_tokenizer for pre_tokenizer, names in _GROUPS for name in names
}
