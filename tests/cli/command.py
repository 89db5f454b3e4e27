"""What a run of the command gave, and what it left on the disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    def text(self) -> str:
        """Stdout of a command that went well."""
        assert self.code == 0, self.err
        return self.out

    def one_error_line(self) -> str:
        """The one line of a command that failed on purpose."""
        assert self.code == 1, (self.out, self.err)
        assert self.out == ""
        assert self.err.startswith("ovgen: ")
        assert self.err.endswith("\n")
        assert len(self.err.splitlines()) == 1
        assert "unexpected" not in self.err  # what main() says of an error that nobody mapped
        return self.err


def files_in(folder: Path) -> dict[str, int]:
    """Sizes of files, and folders: all that are not what a cache may hold after an error, that is
    its own folders, locks and whole compiled models."""
    entries = {
        path.relative_to(folder).as_posix(): path.stat().st_size if path.is_file() else -1
        for path in folder.rglob("*")
    }
    own = ("models", "sources", "compiled", "locks", "hf")
    return {
        name: size
        for name, size in entries.items()
        if name not in own
        and not name.startswith("locks/")
        and not re.fullmatch(r"compiled/\w[\w-]+\.blob", name)
    }
