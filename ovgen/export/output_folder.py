"""A folder that appears when it is complete, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ovgen.errors import ConfigError, StorageError
from ovgen.export.weight_store import MODEL_XML


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder on the target's disk whose files become the target's at the end, or go away.

    A target that exists stays the folder that it is: it may be a mount, or the current one.
    """
    exists = target.exists()
    if exists and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{target} exists and is not an empty folder; give another, or remove it")
    # Named before it is made: an interrupt in between must not leave it behind.
    partial = (target if exists else target.parent) / f".{target.name}.{os.urandom(8).hex()}"
    try:
        partial.mkdir(parents=True)
        yield partial
        if exists:
            # The graph comes last: without it nothing takes the folder for a model.
            for path in sorted(partial.iterdir(), key=lambda path: path.name == MODEL_XML):
                path.rename(target / path.name)
        else:
            partial.rename(target)
    except OSError as exc:
        raise StorageError(f"{target} cannot be written: {exc.strerror or exc}") from exc
    finally:
        shutil.rmtree(partial, ignore_errors=True)
