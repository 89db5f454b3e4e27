"""GGUF files in parts, as llama.cpp's gguf-split leaves them: what they say about each other.

The first part has the model's metadata, and all of them ``split.no``, ``split.count`` and
``split.tensors.count``. Their names end in ``-00001-of-00003.gguf``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ovgen.errors import ModelFormatError, ModelNotFoundError
from ovgen.export.gguf_header import GGUFTensor, MetadataValue

_MAX_PARTS = 99_999  # five digits of the names


@dataclass(frozen=True, slots=True)
class Part:
    """What one file holds."""

    path: Path
    version: int
    metadata: dict[str, MetadataValue]
    tensors: dict[str, GGUFTensor]


@dataclass(frozen=True, slots=True)
class Split:
    """How many parts a model has, and how many tensors all of them."""

    count: int
    num_tensors: int

    def part_names(self, path: Path) -> Iterator[str]:
        """The file names of all parts in their order, from the path of any one of them.

        Raises ModelNotFoundError, where a part is missing, and ModelFormatError, where the path
        is not named as a part is.
        """
        end = f"-of-{self.count:05}.gguf"
        stem = path.name.removesuffix(end)
        prefix, number = stem[:-6], stem[-6:]
        numbers = [f"-{index + 1:05}" for index in range(self.count)]
        if stem == path.name or number not in numbers:
            raise ModelFormatError(
                f"{path}: one of {self.count} parts of a split GGUF, but its name does not end in "
                f"{numbers[0]}{end} to {numbers[-1]}{end}, so the others cannot be found; give it "
                "its name back"
            )
        for number in numbers:
            name = f"{prefix}{number}{end}"
            if not path.with_name(name).exists():
                raise ModelNotFoundError(
                    f"{path}: one of {self.count} parts of a split GGUF; {name} is missing in its "
                    "folder"
                )
            yield name

    def join(self, parts: Iterable[Part]) -> Part:
        """All parts as one. Raises ModelFormatError where they do not belong together."""
        first: Part | None = None
        tensors: dict[str, GGUFTensor] = {}
        for index, part in enumerate(parts):
            first = first or part
            split = split_of(part.path, part.metadata)
            number = part.metadata.get("split.no")
            if split != self or type(number) is not int or number != index:
                raise ModelFormatError(
                    f"{part.path}: says of itself {_describe(number, split)}, expected "
                    f"{_describe(index, self)}; the parts are not of one model"
                )
            for name, tensor in part.tensors.items():
                if name in tensors:
                    raise ModelFormatError(
                        f"{part.path}: tensor {name!r:.80} is in an earlier part as well"
                    )
                tensors[name] = tensor
        assert first is not None
        if len(tensors) != self.num_tensors:
            raise ModelFormatError(
                f"{first.path}: all parts together have {len(tensors)} tensors, "
                f"'split.tensors.count' is {self.num_tensors}"
            )
        return Part(first.path, first.version, first.metadata, tensors)


def split_of(path: Path, metadata: dict[str, MetadataValue]) -> Split | None:
    """What the metadata of a part says; None for a file that is whole.

    Raises ModelFormatError: counts that are missing or make no sense.
    """
    count = _count("split.count", path, metadata)
    if count < 2:
        return None
    if count > _MAX_PARTS:
        raise ModelFormatError(f"{path}: 'split.count' is {count}, the most is {_MAX_PARTS}")
    return Split(count, _count("split.tensors.count", path, metadata))


def _count(key: str, path: Path, metadata: dict[str, MetadataValue]) -> int:
    value = metadata.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        shown = repr(value) if isinstance(value, bool | int | float | str) else "an array"
        raise ModelFormatError(f"{path}: {key!r} is {shown:.80}, expected a count")
    return value


def _describe(number: MetadataValue | None, split: Split | None) -> str:
    if split is None or type(number) is not int:
        return "that it is whole"
    return f"part {number + 1} of {split.count} with {split.num_tensors} tensors in all"
