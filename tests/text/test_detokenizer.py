"""Any way of cutting ids into steps gives the whole decode, and no U+FFFD that it does not have."""

# ruff: noqa: RUF001, E501

import random
from itertools import chain, pairwise

import pytest
from small_tokenizers import BUILDERS

from ovgen.text.detokenizer import IncrementalDetokenizer
from ovgen.text.tokenizer import load_tokenizer

STRINGS = [
    "", " ", "   leading spaces", "trailing  ", "\n\n a\tb ", "hello world, don't stop",
    "你好，世界。今天天气很好", "吾輩は猫である。名前はまだ無い", "안녕하세요 세계", "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם", "สวัสดีชาวโลก", "नमस्ते दुनिया", "བོད་སྐད་ཡིག་", "👍🏽", "👨‍👩‍👧‍👦 family", "🏳️‍🌈🇩🇪🇯🇵",
    "e\u0301\u0302 combining", "a\u200d\u200cb", "\ufeffBOM", "real \ufffd inside", "\ufffd\ufffd\ufffd\ufffd\ufffd",
    "mixed 你a好b👍c", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈", "naïve café – “quotes”", "x" * 60, "<s>a</s> <tool>你好吗</s>",
    "zero\0byte", "a . b , c ' d n't", "def f(x):\n    return x ** 2  # ok\n",
]  # fmt: skip

# Bytes that are not UTF-8, as a model may well produce: stray, cut short, overlong, surrogates.
BAD_BYTES = [
    b"\xff", b"\xe4\xbd", b"\xe4\xbd a", b"\xbd\xa0ok", b"\xf0\x9f\x91", b"\xf0\x9f\xe4\xbd\xa0",
    b"\xff" * 70, b"\xc0\x80x", b"\xed\xa0\x80", b"\xe4\xbd\xa0\xe4", b"\xef\xbf\xbd\xef\xbf",
    b"a\xf0\x9f\x91\x8d\x80\x80b", b"\xf4\x90\x80\x80", b"\x80" * 40 + "你".encode(),
]  # fmt: skip


def byte_ids(tokenizer, data: bytes) -> list[int]:
    """One token a byte; none for a vocabulary without bytes."""
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in data]
    if None in ids:
        alphabet = byte_level_alphabet()
        ids = [tokenizer.token_to_id(alphabet[byte]) for byte in data]
    return [] if None in ids else ids


def byte_level_alphabet() -> list[str]:
    """GPT-2's printable stand-ins of the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    table |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


def pieces(tokenizer, ids, cut, **options) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, **options)
    bounds = [0, *cut, len(ids)]
    out = [detokenizer.decode(ids[a:b]) for a, b in pairwise(bounds)]
    return [*out, detokenizer.flush()]


def check_all_cuts(tokenizer, ids) -> None:
    """Every one of the 2^(n-1) ways to cut up to 40 ids: many lead to the same state, which is
    followed once for each position and text so far. Longer ones in single steps and random ones."""
    for skip in (True, False):
        whole = tokenizer.decode(ids, skip_special_tokens=skip)
        if len(ids) > 40:
            rng = random.Random(len(ids))
            some = [rng.sample(range(1, len(ids)), rng.randrange(1, len(ids))) for _ in range(12)]
            for cut in [[], range(1, len(ids)), *map(sorted, some)]:
                assert "".join(pieces(tokenizer, ids, cut, skip_special_tokens=skip)) == whole
            continue
        reached = [{} for _ in range(len(ids) + 1)]  # by position: state and text to detokenizer
        reached[0][None] = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip), ""
        for start, states in enumerate(reached):
            for detokenizer, text in states.values():
                for end in range(start + 1, len(ids) + 1):
                    after = detokenizer.fork()
                    longer = text + after.decode(ids[start:end])
                    assert whole.startswith(longer), (ids, start, end)
                    reached[end][(state(after), longer)] = after, longer
        for detokenizer, text in reached[-1].values():
            assert text + detokenizer.flush() == whole, ids


def state(detokenizer: IncrementalDetokenizer) -> tuple:
    return tuple(detokenizer._window), tuple(detokenizer._byte_run), detokenizer._given


def nasty_ids(tokenizer) -> list[list[int]]:
    words = [tokenizer.encode(text) for text in STRINGS]
    data = [byte_ids(tokenizer, b) for b in chain((s.encode() for s in STRINGS), BAD_BYTES)]
    mixed = [tokenizer.encode("a 你") + d + tokenizer.encode(" b") + d for d in data]
    return words + data + mixed


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_cut_gives_the_whole_decode(small_tokenizers, kind):
    for ids in nasty_ids(small_tokenizers[kind]):
        check_all_cuts(small_tokenizers[kind], ids)


@pytest.mark.parametrize("kind", BUILDERS)
def test_random_ids(small_tokenizers, kind):
    tokenizer = small_tokenizers[kind]
    rng = random.Random(7)
    for length, times in ((5, 20), (9, 20), (20, 10), (200, 20)):
        for _ in range(times):
            check_all_cuts(tokenizer, [rng.randrange(tokenizer.vocab_size) for _ in range(length)])


def test_openvino_tokenizer(ov_tokenizer_folder):
    tokenizer = load_tokenizer(ov_tokenizer_folder)
    for data in [*(s.encode() for s in STRINGS[5:20:3]), *BAD_BYTES[::2]]:
        check_all_cuts(tokenizer, [259, *data, 260, *data])


def test_text_comes_without_delay(small_tokenizers):
    tokenizer = small_tokenizers["byte_level"]
    detokenizer = IncrementalDetokenizer(tokenizer)
    text = ""
    for index, token_id in enumerate(ids := tokenizer.encode("the lazy dog don't stop " * 20)):
        text += detokenizer.decode([token_id])
        assert text == tokenizer.decode(ids[: index + 1])


def test_half_a_character_is_held_back_and_flushed(small_tokenizers):
    tokenizer = small_tokenizers["byte_level"]
    first, second, third = byte_ids(tokenizer, "你".encode())
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert detokenizer.decode([first]) == ""
    assert detokenizer.decode([second]) == ""
    assert detokenizer.decode([third]) == "你"
    assert detokenizer.decode([first]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_a_broken_run_of_byte_tokens_is_never_shown_as_characters(small_tokenizers):
    tokenizer = small_tokenizers["llama2"]
    detokenizer = IncrementalDetokenizer(tokenizer)
    ids = byte_ids(tokenizer, "你".encode() + b"\xff")
    assert [detokenizer.decode([i]) for i in ids] == [""] * 4
    assert detokenizer.flush() == tokenizer.decode(ids) == "\ufffd" * 4


@pytest.mark.parametrize("kind", ["llama2", "metaspace"])
def test_continuing_a_prompt_keeps_the_leading_space(small_tokenizers, kind):
    tokenizer = small_tokenizers[kind]
    prompt = tokenizer.encode("hello world", add_special_tokens=False) * 9
    new = tokenizer.encode("the dog", add_special_tokens=False)
    assert "".join(pieces(tokenizer, new, [1])) == "the dog"
    assert "".join(pieces(tokenizer, new, [1], prompt_token_ids=prompt)) == " the dog"


def test_a_character_begun_in_the_prompt_is_completed(small_tokenizers):
    tokenizer = small_tokenizers["byte_level"]
    ids = byte_ids(tokenizer, "a你b".encode())
    assert pieces(tokenizer, ids[2:], [1, 2], prompt_token_ids=ids[:2]) == ["", "你", "b", ""]


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_fork_goes_on_by_itself(small_tokenizers, kind):
    tokenizer = small_tokenizers[kind]
    rng = random.Random(3)
    for length in (0, 1, 4, 30):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(length)]
        ids += byte_ids(tokenizer, "你".encode()[:2])  # held back
        detokenizer = IncrementalDetokenizer(tokenizer)
        out = detokenizer.decode(ids)
        branches = [detokenizer, detokenizer.fork(), detokenizer.fork().fork()]
        rests = [[rng.randrange(tokenizer.vocab_size) for _ in range(25)] for _ in branches]
        texts = [out] * len(branches)
        for step in range(25):
            for index, branch in enumerate(branches):
                texts[index] += branch.decode([rests[index][step]])
        for text, branch, rest in zip(texts, branches, rests, strict=True):
            assert text + branch.flush() == tokenizer.decode(ids + rest)


def test_ids_without_a_token_have_no_text(small_tokenizers):
    tokenizer = small_tokenizers["byte_level"]
    ids = tokenizer.encode("hello", add_special_tokens=False)
    padded = [*ids, tokenizer.vocab_size + 5, *ids]
    assert "".join(pieces(tokenizer, padded, [1, 2])) == "hellohello"


class CountingTokenizer:
    """Counts the ids that are decoded."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.special_ids = tokenizer.special_ids
        self.id_to_token = tokenizer.id_to_token
        self.decoded = 0

    def decode(self, token_ids, *, skip_special_tokens=True):
        self.decoded += len(token_ids)
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize(
    ("kind", "unit"),
    [
        ("byte_level", b"\xff"), ("byte_level", b"\x80"), ("byte_level", b"a"),
        ("byte_level", "👍".encode()), ("llama2", b"\xff"), ("llama2", "你".encode()),
    ],
)  # fmt: skip
def test_cost_of_a_token_is_bounded(small_tokenizers, kind, unit):
    tokenizer = CountingTokenizer(small_tokenizers[kind])
    ids = byte_ids(small_tokenizers[kind], unit) * (3000 // len(unit))
    assert "".join(pieces(tokenizer, ids, list(range(1, len(ids))))) == tokenizer.decode(ids)
    assert tokenizer.decoded < 30 * len(ids)


def test_a_row_of_skipped_tokens_costs_nothing(small_tokenizers):
    tokenizer = CountingTokenizer(small_tokenizers["byte_level"])
    detokenizer = IncrementalDetokenizer(tokenizer)
    for _ in range(1000):
        assert detokenizer.decode([0]) == ""
    assert tokenizer.decoded == 0


@pytest.mark.model
@pytest.mark.parametrize("model", ["smollm2_gguf", "gemma3_gguf"])
def test_real_tokenizers(request, tmp_path, model):
    from ovgen.export.gguf import open_gguf
    from ovgen.export.tokenizer import export_tokenizer

    with open_gguf(request.getfixturevalue(model)) as gguf:
        export_tokenizer(gguf, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    for ids in nasty_ids(tokenizer):
        check_all_cuts(tokenizer, ids)
