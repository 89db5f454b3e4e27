"""The metadata of a GGUF file under its architecture's prefix."""

from __future__ import annotations

from typing import Any, NoReturn

from ovgen.errors import UnsupportedModelError
from ovgen.export.gguf import GGUFFile

_MAX_SIZE = 1 << 24


class Metadata:
    """Typed access to ``ARCHITECTURE.key``; what is absent is None.

    Every method raises ModelFormatError for a value of another type.
    """

    def __init__(self, gguf: GGUFFile) -> None:
        self.gguf = gguf
        self._prefix = gguf.architecture

    def __contains__(self, key: str) -> bool:
        return f"{self._prefix}.{key}" in self.gguf.metadata

    def integer(self, key: str) -> int | None:
        """An integer that is not negative."""
        if key not in self:
            return None
        return self.gguf.get_int(f"{self._prefix}.{key}", min=0, max=1 << 31)

    def number(self, key: str) -> float | None:
        """A finite number."""
        return self.gguf.get_float(f"{self._prefix}.{key}") if key in self else None

    def flag(self, key: str) -> bool | None:
        """A boolean."""
        return self.gguf.get_bool(f"{self._prefix}.{key}") if key in self else None

    def text(self, key: str) -> str | None:
        """A string."""
        return self.gguf.get_str(f"{self._prefix}.{key}") if key in self else None

    def size(self, key: str) -> int:
        """A size that has to be there."""
        return self.gguf.get_int(f"{self._prefix}.{key}", min=1, max=_MAX_SIZE)

    def refuse(self, key: str, value: Any, supported: str) -> NoReturn:
        """Raise UnsupportedModelError that names the key and its value."""
        raise UnsupportedModelError(
            f"{self.gguf.path}: {self._prefix}.{key} is {value!r:.80}; supported: {supported}"
        )
