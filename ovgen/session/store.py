"""Saves and loads sessions: between their files and the prefix cache of an engine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ovgen.engine.engine import Engine
from ovgen.engine.prefix_transfer import PrefixPart
from ovgen.engine.service import EngineService
from ovgen.errors import ModelNotFoundError, RequestError
from ovgen.model.profile import model_digest
from ovgen.session.file import ModelIdentity, open_session, write_session
from ovgen.session.state import SessionState

_PART = 1 << 24  # bytes of blocks that the engine copies between two steps


def save_state(path: Path, state: SessionState, folder: Path, service: EngineService) -> None:
    """Write a session to a file, with what the prefix cache has of it; see `Session.save`."""
    write_session(path, state, _identity(folder), _exported(state, service))


def load_state(
    path: Path, folder: Path, service: EngineService, *, context_length: int, vocab_size: int
) -> SessionState:
    """Read a session from a file, and put its blocks into the prefix cache.

    Raises:
        ClosedError: the LLM was closed.
        ModelFormatError: the file is damaged, or no session of this version.
        RequestError: it is a session of another model.
        StorageError: it cannot be read.
    """
    service.open()
    mine = _identity(folder)
    with open_session(path, context_length=context_length, vocab_size=vocab_size) as saved:
        if saved.model.digest != mine.digest:
            raise RequestError(
                f"{path} is a session of the model {saved.model}, and this LLM is {mine}: load it "
                "with the model that it was saved with"
            )
        state, start = saved.state, 0
        for part in saved.parts(_PART):
            task = partial(
                Engine.import_prefix,
                token_ids=state.token_ids,
                start=start,
                part=part,
                salt=state.salt,
            )
            start += len(part.content)
            if service.result_of(task) < start:  # no room, or of another layout
                break
    return state


def _exported(state: SessionState, service: EngineService) -> Iterator[PrefixPart]:
    """The blocks that the prefix cache has of a session."""
    start = 0
    while True:
        task = partial(
            Engine.export_prefix,
            token_ids=state.token_ids,
            start=start,
            max_bytes=_PART,
            salt=state.salt,
        )
        part = service.result_of(task)
        if part is None or not len(part.content):
            return
        yield part
        start += len(part.content)


def _identity(folder: Path) -> ModelIdentity:
    try:
        return ModelIdentity(folder.absolute().name, model_digest(folder))
    except OSError as exc:
        raise ModelNotFoundError(
            f"cannot read the model in {folder}: {exc.strerror or exc}; it tells whether a session "
            "belongs to it"
        ) from exc
