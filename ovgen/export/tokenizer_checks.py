"""What the library `tokenizers` says of a tokenizer.json: its normal form, and what it does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovgen.errors import ModelFormatError, StorageError

# Letters of several scripts, marks, digits, symbols, spaces and what mixes them.
PROBES = (
    "Hello, world!",
    "the quick brown fox can't jump; it's they'll DON'T",
    " leading space",
    "two  spaces,   three and \t a tab",
    "line\nbreaks\n\nand\r\nmore \n",
    "trailing spaces  ",
    "1 22 333 4444 55555 666,777.88",
    "camelCaseWord SNAKE_CASE_WORD x1y2",
    "naïve café Größe ÅNGSTRÖM ȘTIINȚĂ",
    "привет, мир! ЁЖИК",
    "γειά σου Κόσμε",  # noqa: RUF001
    "你好,世界。今天天气很好",
    "こんにちは カタカナ 한국어 안녕",
    "مرحبا بالعالم שלום",
    "नमस्ते दुनिया สวัสดี",
    "e\u0301 a\u0308 \u00bd \u2167 \ufb01",
    "😀 👍🏽 👨\u200d👩\u200d👧",
    "def f(x):\n    return {'a': [1, 2], \"b\": x ** 2}  # ok?\n",
    "<html><p>a &amp; b</p></html> $5 + 3% = ~8^2 | `code`",
    "non\u00a0breaking\u3000wide\u2003em",
    "a",
    "1",
    "?!...---===",
)

_MAX_VOCABULARY = 1 << 22  # the largest vocabularies have 2**18 tokens
_ADDED_TOKEN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)


def normal_form(path: Path) -> dict[str, Any]:
    """A tokenizer.json with every field, as the library writes it.

    The library itself is given all but the vocabulary and the merges, which may take hundreds of
    megabytes and are the same in every form.

    Raises StorageError (not readable) and ModelFormatError (it is none).
    """
    from tokenizers import Tokenizer

    content = read_json(path)
    try:
        model = content["model"]
        large = {name: model[name] for name in ("vocab", "merges") if name in model}
        small: dict[str, Any] = {name: type(value)() for name, value in large.items()}
        if model.get("type") == "Unigram":
            small = {"vocab": [["", 0.0]], "unk_id": None}
        stub = {**content, "model": {**model, **small}, "added_tokens": []}
        form: dict[str, Any] = json.loads(Tokenizer.from_str(json.dumps(stub)).to_str())
        form["model"].update(large)
        added = content.get("added_tokens") or []
        form["added_tokens"] = [{**_ADDED_TOKEN, **token} for token in added]
        _check_ids(form)
    except Exception as exc:  # all that the library raises, and what is no such object
        reason = " ".join(str(exc).split()) or type(exc).__name__
        raise ModelFormatError(f"{path}: not a usable tokenizer ({reason})") from exc
    return form


def _check_ids(content: dict[str, Any]) -> None:
    """ValueError for ids that cannot be: tables are as long as the highest one says."""
    vocab = content["model"]["vocab"]
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    for token_id in [*ids, *(token["id"] for token in content["added_tokens"])]:
        if isinstance(token_id, bool) or not isinstance(token_id, int):
            raise ValueError(f"the token id {token_id!r:.40} is no whole number")
        if not 0 <= token_id < _MAX_VOCABULARY:
            raise ValueError(
                f"the token id {token_id} is out of range, which is 0 to {_MAX_VOCABULARY - 1}"
            )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises StorageError (not readable) and ModelFormatError (there is none).
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise StorageError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    except (ValueError, RecursionError) as exc:
        raise ModelFormatError(f"{path}: not JSON ({exc})") from exc
    if not isinstance(content, dict):
        raise ModelFormatError(f"{path}: expected a JSON object")
    return content


def num_unmerged(content: dict[str, Any]) -> int:
    """The tokens that BPE has as a whole only where a word may ignore the merges."""
    from tokenizers import Tokenizer

    model = content["model"]
    if not model.get("ignore_merges"):
        return 0
    plain = {**content, "normalizer": None, "pre_tokenizer": None}
    plain["model"] = {**model, "ignore_merges": False}
    merging = Tokenizer.from_str(json.dumps(plain)).model
    added = {token["content"] for token in content["added_tokens"]}
    return sum(len(merging.tokenize(token)) != 1 for token in model["vocab"] if token not in added)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What tokenizer.json makes of a text, and of its tokens."""

    text: str
    ids: list[int]
    decoded: str


def expectations(path: Path) -> list[Expectation]:
    """What another implementation must do as well; some texts hold the tokenizer's own tokens.

    Raises ModelFormatError: it is no tokenizer.json.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        found = []
        for text in _probes(tokenizer):
            ids = tokenizer.encode(text).ids
            found.append(Expectation(text, ids, tokenizer.decode(ids)))
    except Exception as exc:  # all that the library raises
        reason = " ".join(str(exc).split())
        raise ModelFormatError(f"{path}: not a usable tokenizer ({reason})") from exc
    return found


def first_difference(
    expected: Sequence[Expectation],
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
) -> str | None:
    """The first text that an implementation treats otherwise."""
    for one in expected:
        if list(encode(one.text)) != one.ids or (one.ids and decode(one.ids) != one.decoded):
            return one.text
    return None


def _probes(tokenizer: Any) -> list[str]:
    """With some of the tokenizer's own added tokens in a text, at its beginning and its end."""
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    mixed = [
        text for one in added[:3] + added[-3:] for text in (f"a{one}b", f"{one} c", f"d {one}")
    ]
    return [*PROBES, *mixed, " ".join(PROBES)]
