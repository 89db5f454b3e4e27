"""Small files that ovgen keeps beside a model: what it has found out about it."""

from __future__ import annotations

from pathlib import Path

from ovgen.errors import StorageError


def side_paths(folder: Path, name: str, section: str) -> tuple[Path, Path]:
    """Where such a file is: beside the model, or in OVGEN_HOME where that may not be written.

    Args:
        folder: of the model.
        name: of the file beside it.
        section: folder of OVGEN_HOME.
    """
    from ovgen.hub.cache import home_folder, short_digest

    folder = folder.absolute()
    at_home = f"{folder.name}-{short_digest(str(folder))}.json"
    return folder / name, home_folder() / section / at_home


def write_side_file(paths: tuple[Path, Path], content: bytes) -> Path:
    """Write it whole to the first of its places that takes it; gives that one.

    Raises:
        StorageError: neither does.
    """
    from ovgen.hub.cache import write_whole

    beside, at_home = paths
    try:
        write_whole(beside, [content], origin=beside.name)
    except StorageError:
        write_whole(at_home, [content], origin=beside.name)
        return at_home
    return beside
