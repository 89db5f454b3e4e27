"""The tokenizer protocol, and its usual implementation over `tokenizer.json`.

`load_tokenizer` picks what a model folder offers: `tokenizer.json` (package `tokenizers`), else the
OpenVINO tokenizer pair (`openvino_tokenizer.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ovgen.errors import ModelFormatError, ModelNotFoundError, RequestError
from ovgen.text.tokenizer_config import TokenizerConfig, read_text, read_tokenizer_config

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_NAME = "tokenizer.json"
OV_TOKENIZER_NAME = "openvino_tokenizer.xml"
OV_DETOKENIZER_NAME = "openvino_detokenizer.xml"


class Tokenizer(Protocol):
    """Text to token ids and back. Implementations may be used from several threads at once."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model's logits may be wider (padding)."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out."""

    @property
    def bos_token(self) -> str | None:
        """Text of the token that begins a sequence, None when the model names none."""

    @property
    def eos_token(self) -> str | None:
        """Text of the token that ends a sequence, None when the model names none."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. RequestError when it is not text that UTF-8 can hold."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`. RequestError for an id that the tokenizer does not have."""

    def token_to_id(self, token: str) -> int | None:
        """Id of the token spelled exactly `token` in the vocabulary, or None."""

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's spelling of `token_id`, or None."""


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a model folder.

    ModelNotFoundError when there is none, ModelFormatError when its files are broken.
    """
    config = read_tokenizer_config(folder)
    if (folder / TOKENIZER_NAME).is_file():
        return HFTokenizer(folder / TOKENIZER_NAME, config)
    if (folder / OV_TOKENIZER_NAME).is_file() and (folder / OV_DETOKENIZER_NAME).is_file():
        from ovgen.text.openvino_tokenizer import OpenVINOTokenizer

        return OpenVINOTokenizer(folder / OV_TOKENIZER_NAME, folder / OV_DETOKENIZER_NAME, config)
    raise ModelNotFoundError(
        f"no tokenizer in {folder}: needs {TOKENIZER_NAME}, or {OV_TOKENIZER_NAME} together with "
        f"{OV_DETOKENIZER_NAME}"
    )


def check_text(text: str) -> None:
    """RequestError unless `text` is a string that UTF-8 can hold (no lone surrogates)."""
    if not isinstance(text, str):
        raise RequestError(f"text to tokenize must be a str, not a {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise RequestError(
            f"text to tokenize holds a lone surrogate U+{ord(text[exc.start]):04X} at character "
            f"{exc.start}; remove it or decode the source with errors='replace'"
        ) from exc


def unknown_id_error(token_id: int, vocab_size: int) -> RequestError:
    """The error for an id without a token."""
    return RequestError(
        f"token id {token_id} is not in the tokenizer's vocabulary of {vocab_size} tokens"
    )


class HFTokenizer:
    """A `tokenizer.json`, run by the package `tokenizers`.

    Only single encodes are used: those never start the package's thread pool, so nothing has to be
    said about TOKENIZERS_PARALLELISM. The file's own truncation and padding are switched off: they
    would cut or fill prompts silently.
    """

    def __init__(self, path: Path, config: TokenizerConfig) -> None:
        self._tokenizer = _parse(path)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self._bos_token = config.special_token("bos_token")
        self._eos_token = config.special_token("eos_token")

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def special_ids(self) -> frozenset[int]:
        return self._special_ids

    @property
    def bos_token(self) -> str | None:
        return self._bos_token

    @property
    def eos_token(self) -> str | None:
        return self._eos_token

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        check_text(text)
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except BaseException as exc:
            raise RequestError(f"the tokenizer cannot encode this text: {_reason(exc)}") from exc
        ids: list[int] = encoding.ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self._vocab_size:
            self._check_ids(token_ids)
        try:
            text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        except BaseException as exc:
            raise RequestError(f"the tokenizer cannot decode these ids: {_reason(exc)}") from exc
        return text

    def token_to_id(self, token: str) -> int | None:
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def id_to_token(self, token_id: int) -> str | None:
        if not 0 <= token_id < 2**32:
            return None
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    def _check_ids(self, token_ids: Sequence[int]) -> None:
        # A vocabulary with holes has ids beyond its size, so size alone does not decide.
        for token_id in token_ids:
            if self.id_to_token(token_id) is None:
                raise unknown_id_error(token_id, self._vocab_size)


def _parse(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    text = read_text(path)
    if text is None:
        raise ModelNotFoundError(f"no tokenizer at {path}")
    try:
        return tokenizers.Tokenizer.from_str(text)
    except BaseException as exc:
        raise ModelFormatError(f"{path} is not a usable tokenizer: {_reason(exc)}") from exc


def _reason(exc: BaseException) -> str:
    """One line for an error of `tokenizers`; re-raises what is not one.

    The package raises plain Exceptions, and its Rust panics derive from BaseException.
    """
    if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
        raise exc
    return " ".join(str(exc).split()) or type(exc).__name__
