"""A model's weights, mapped, so that their pages can be dropped once the device has its own."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openvino as ov

_INTERVAL = 0.005  # seconds


class MappedWeights:
    """An IR's .bin or a compiled model, for OpenVINO to read; it has to live as long as the model.

    The CPU packs weights into a layout of its own when it first needs them, and does not look at
    the file's again, but for tables. Mapped by OpenVINO, they count as used memory all the same.

    Args:
        path: of the file.
        offset: where in the file it begins.

    Attributes:
        tensor: [bytes] uint8, over the mapping.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._mapping: mmap.mmap | None = None
        content = np.empty(0, np.uint8)
        if path.stat().st_size:
            with path.open("rb") as file:
                # Copy on write: OpenVINO takes no read-only memory, and writes none of it.
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            content = np.frombuffer(self._mapping, np.uint8, offset=offset)
        self.tensor = ov.Tensor(content, shared_memory=True)

    def drop_pages(self) -> None:
        """Let the system take the pages back; they are read again where they are needed."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)

    @contextmanager
    def dropping_pages(self) -> Iterator[None]:
        """Drop them again and again, while the device packs what is in them."""
        is_over = threading.Event()

        def drop() -> None:
            while not is_over.wait(_INTERVAL):
                self.drop_pages()

        thread = threading.Thread(target=drop, name="ovgen weights", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            self.drop_pages()
