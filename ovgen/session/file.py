"""The file of a saved session: its tokens, what else it goes on with, and its blocks.

Little-endian, one after the other: eight bytes of magic, version and length of the header, the
header in JSON, the tokens as uint32, the blocks, their number, and blake2b of all before it. What
is read comes from outside: nothing is believed before the checksum, and no length before the size
of the file agrees with it.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from io import BufferedReader
from itertools import chain
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np

from ovgen.engine.prefix_transfer import PrefixPart
from ovgen.errors import ModelFormatError, RequestError, StorageError
from ovgen.session.state import SessionState

_MAGIC, _VERSION = b"OVGENses", 1
_HEAD = Struct("<8sIQ")  # magic, version, bytes of the header
_COUNT = Struct("<Q")
_DIGEST_SIZE = 32
_CHUNK = 1 << 20
_MAX_HEADER = 1 << 25  # bytes; of messages, for nothing else in it is long
_LIMIT = 1 << 64


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model a session is of: a name for people, and what tells it from all others."""

    name: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name!r} ({self.digest[:12]})"


class SavedSession:
    """A session's file, open and checked.

    Attributes:
        state: what the session goes on with.
        model: that it is of.
        layout: of its blocks; None where it has none.
    """

    def __init__(
        self,
        file: BufferedReader,
        state: SessionState,
        model: ModelIdentity,
        layout: Mapping[str, Any] | None,
        num_blocks: int,
    ) -> None:
        self.state = state
        self.model = model
        self.layout = layout
        self._file = file
        self._num_blocks = num_blocks

    def parts(self, max_bytes: int) -> Iterator[PrefixPart]:
        """Its blocks, in parts of so many bytes or one block."""
        left = self._num_blocks
        while left and self.layout is not None:
            width = self.layout["block_bytes"]
            count = min(left, max(1, max_bytes // width))
            content = np.empty((count, width), np.uint8)
            if self._file.readinto(content.reshape(-1).data) != content.nbytes:
                raise _Damage("has become shorter while it was read")
            yield PrefixPart(self.layout, content)
            left -= count


def write_session(
    path: Path, state: SessionState, model: ModelIdentity, parts: Iterator[PrefixPart]
) -> None:
    """Write a session to a file, which appears whole or not at all.

    Args:
        path: of the file; one that is there is replaced.
        state: of the session.
        model: that it is of.
        parts: blocks of its tokens, from the first on.

    Raises:
        RequestError: messages that JSON cannot express, or far too long ones.
        StorageError: it cannot be written.
    """
    first = next(parts, None)
    header = _header(state, model, None if first is None else first.layout)
    hidden = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        with hidden.open("xb") as file:
            digest = blake2b(digest_size=_DIGEST_SIZE)
            for piece in _pieces(header, state, first, parts):
                digest.update(piece)
                file.write(piece)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, path)
    except OSError as exc:
        raise StorageError(
            f"cannot write {path}: {exc.strerror or exc}; save the session to another place"
        ) from exc
    finally:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)


def _header(state: SessionState, model: ModelIdentity, layout: Mapping[str, Any] | None) -> bytes:
    content = {
        "model": model.digest,
        "model_name": model.name,
        "seed": state.seed,
        "num_turns": state.num_turns,
        "num_tokens": len(state.token_ids),
        "messages": state.messages,
        "cache_salt": state.cache_salt,
        "layout": layout,
    }
    try:
        header = json.dumps(content, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise RequestError(
            f"a session is saved with its messages as JSON, and one has something else: {exc}"
        ) from exc
    if len(header) > _MAX_HEADER:
        raise RequestError(
            f"the messages of this session take {len(header)} bytes; {_MAX_HEADER} can be saved"
        )
    return header


def _pieces(
    header: bytes, state: SessionState, first: PrefixPart | None, parts: Iterator[PrefixPart]
) -> Iterator[bytes | memoryview]:
    yield _HEAD.pack(_MAGIC, _VERSION, len(header))
    yield header
    yield np.array(state.token_ids, "<u4").tobytes()
    num_blocks = 0
    for part in chain([first] if first else [], parts):
        if first is None or part.layout != first.layout:  # the engine has another runner now
            break
        num_blocks += len(part.content)
        yield part.content.reshape(-1).data
    yield _COUNT.pack(num_blocks)


class _Damage(ValueError):
    """What is wrong with a file, to be said after its name."""


@contextmanager
def open_session(path: Path, *, context_length: int, vocab_size: int) -> Iterator[SavedSession]:
    """Check a session's file, and hold it open to read its blocks.

    Args:
        path: of the file.
        context_length: most tokens that a session may have.
        vocab_size: their ids are below it.

    Raises:
        ModelFormatError: the file is damaged, or no session of this version.
        StorageError: it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe could be waited for forever
            raise StorageError(f"cannot read {path}: it is not a file; give one with a session")
        with path.open("rb") as file:
            yield _checked(file, context_length, vocab_size)
    except OSError as exc:
        raise StorageError(
            f"cannot read {path}: {exc.strerror or exc}; give a file that session.save() wrote"
        ) from exc
    except _Damage as exc:
        raise ModelFormatError(
            f"{path} {exc}; give a file that session.save() wrote, or begin a new session"
        ) from exc


def _checked(file: BufferedReader, context_length: int, vocab_size: int) -> SavedSession:
    size = os.fstat(file.fileno()).st_size
    head = file.read(_HEAD.size)
    if not head.startswith(_MAGIC):
        raise _Damage("is not a saved session")
    if len(head) < _HEAD.size:
        raise _Damage("is damaged: it has no header")
    _, version, num_header = _HEAD.unpack(head)
    if version != _VERSION:
        raise _Damage(f"is a session of version {version}; this ovgen reads version {_VERSION}")
    payload = size - _HEAD.size - _COUNT.size - _DIGEST_SIZE  # header, tokens and blocks
    if num_header > min(payload, _MAX_HEADER):
        raise _Damage(f"is damaged: {size} bytes cannot have a header of {num_header}")
    _check_digest(file, size)
    file.seek(size - _DIGEST_SIZE - _COUNT.size)
    (num_blocks,) = _COUNT.unpack(file.read(_COUNT.size))
    file.seek(_HEAD.size)
    header = _parsed(file.read(num_header))
    num_tokens, layout = header["num_tokens"], header["layout"]
    if num_tokens > context_length:
        raise _Damage(f"has {num_tokens} tokens; the model's context is {context_length}")
    block_bytes = 0 if layout is None else layout["block_bytes"]
    if num_header + 4 * num_tokens + num_blocks * block_bytes != payload:
        raise _Damage(f"is damaged: its lengths do not make up its {size} bytes")
    token_ids = tuple(np.frombuffer(file.read(4 * num_tokens), "<u4").tolist())
    if max(token_ids, default=0) >= vocab_size:
        raise _Damage(f"has token id {max(token_ids)}; the model knows 0 to {vocab_size - 1}")
    messages = header["messages"]
    state = SessionState(
        header["seed"],
        token_ids,
        None if messages is None else tuple(messages),
        header["num_turns"],
        header["cache_salt"],
    )
    model = ModelIdentity(header["model_name"], header["model"])
    return SavedSession(file, state, model, layout, num_blocks)


def _check_digest(file: BufferedReader, size: int) -> None:
    file.seek(0)
    digest, left = blake2b(digest_size=_DIGEST_SIZE), size - _DIGEST_SIZE
    while left and (chunk := file.read(min(_CHUNK, left))):
        digest.update(chunk)
        left -= len(chunk)
    if file.read(_DIGEST_SIZE) != digest.digest():
        raise _Damage("is damaged: its checksum is wrong")


def _parsed(written: bytes) -> dict[str, Any]:
    """The header, whose values are of their types."""
    try:
        header = json.loads(written)
    except (ValueError, RecursionError) as exc:
        raise _Damage(f"is damaged: its header is no JSON: {exc}") from exc
    if not isinstance(header, dict) or header.keys() != _FITS.keys():
        raise _Damage(f"is damaged: its header must have {', '.join(_FITS)}")
    for name, fits in _FITS.items():
        if not fits(header[name]):
            raise _Damage(f"is damaged: its {name} is not what it must be")
    return header


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole(value: object, minimum: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value < _LIMIT


def _are_messages(value: object) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in value)
    )


def _is_layout(value: object) -> bool:
    return value is None or (isinstance(value, dict) and _is_whole(value.get("block_bytes"), 1))


_FITS: dict[str, Callable[[Any], bool]] = {
    "model": _is_text,
    "model_name": _is_text,
    "seed": _is_whole,
    "num_turns": _is_whole,
    "num_tokens": _is_whole,
    "messages": _are_messages,
    "cache_salt": _is_text,
    "layout": _is_layout,
}
