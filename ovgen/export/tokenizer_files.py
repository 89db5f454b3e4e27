"""The tokenizer of a Hugging Face folder, taken as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

from ovgen.errors import ModelFormatError, ModelNotFoundError, StorageError
from ovgen.text.chat_template import load_chat_template
from ovgen.text.tokenizer import TOKENIZER_NAME, load_tokenizer
from ovgen.text.tokenizer_config import read_json_object

# What transformers reads beside tokenizer.json; vocab.json, merges.txt and tokenizer.model would
# say the same once more.
_OTHERS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
_TEMPLATES = "additional_chat_templates"
_MAX_SIZE = 256 << 20  # bytes; the largest tokenizers have about 35 million
# What a folder has where its tokenizer was never saved in the fast form.
_SLOW = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy tokenizer.json and what belongs to it (special tokens, chat templates, generation
    options) from one folder to another, after a look whether all of it can be used.

    Raises:
        ModelNotFoundError: there is no tokenizer.json.
        ModelFormatError: a file is damaged or absurdly large.
        StorageError: a file cannot be read, or not be written.
    """
    if not (source / TOKENIZER_NAME).is_file():
        slow = next((name for name in _SLOW if (source / name).is_file()), None)
        there = f"has {slow}, but no {TOKENIZER_NAME}" if slow else f"has no {TOKENIZER_NAME}"
        raise ModelNotFoundError(
            f"{source} {there}; have transformers write one: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    paths = [source / name for name in (TOKENIZER_NAME, *_OTHERS) if (source / name).is_file()]
    templates = sorted((source / _TEMPLATES).glob("*.jinja"))
    for path in [*paths, *templates]:
        _check_size(path)
    load_tokenizer(source)
    load_chat_template(source)
    for name in ("added_tokens.json", "generation_config.json"):
        read_json_object(source / name)
    for path in paths:
        _copy(path, folder / path.name)
    for path in templates:
        _copy(path, folder / _TEMPLATES / path.name)


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as exc:
        raise StorageError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    if size > _MAX_SIZE:
        raise ModelFormatError(
            f"{path}: {size >> 20} MB, which no such file needs; the most is {_MAX_SIZE >> 20} MB"
        )


def _copy(source: Path, target: Path) -> None:
    """The content alone: a file of a download's cache may be a link, or not writable."""
    try:
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as exc:
        raise StorageError(f"{target}: cannot be written ({exc.strerror or exc})") from exc
