"""Split GGUF files: any part opens the whole, and parts that are missing or of something else."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from raw_gguf import Raw

from ovgen.errors import ClosedError, ModelFormatError, ModelNotFoundError
from ovgen.export.gguf import open_gguf


def write_parts(folder: Path, counts=(0, 2, 1), name="m-{:05}-of-{:05}.gguf", **changes) -> Path:
    """A split file whose parts have so many tensors; `changes` are keys of the last part."""
    number = 0
    for index, count in enumerate(counts):
        values = {"no": index, "count": len(counts), "tensors.count": sum(counts)}
        if index == len(counts) - 1:
            values |= changes
        raw = Raw()
        if index == 0:
            raw.add(b"general.name", 8, Raw.string(b"whole"))
        for key, value in values.items():
            if value is not None:
                raw.add(b"split." + key.encode(), 5, struct.pack("<i", value))
        for _ in range(count):
            raw.tensor(name=b"t%d" % number, offset=0)
            number += 1
        raw.data = bytes([index]) * 256
        raw.write(folder / name.format(index + 1, len(counts)))
    return folder / name.format(1, len(counts))


@pytest.mark.parametrize("part", [1, 2, 3])
def test_any_part_opens_the_whole(tmp_path, part):
    write_parts(tmp_path)
    path = tmp_path / f"m-{part:05}-of-00003.gguf"
    with open_gguf(path) as file:
        assert file.path == path
        assert file.get_str("general.name") == "whole"
        assert {name: tensor.data[0, 0] for name, tensor in file.tensors.items()} == {
            "t0": 1,
            "t1": 1,
            "t2": 2,
        }
        file.release_pages()
        data = file.tensors["t2"].data
    assert data[0, 0] == 2
    with pytest.raises(ClosedError):
        _ = file.tensors


def test_a_split_into_one_part_is_whole(tmp_path):
    raw = Raw().add(b"split.count", 2, struct.pack("<H", 1)).tensor()
    with open_gguf(raw.write(tmp_path / "any name.gguf")) as file:
        assert list(file.tensors) == ["t"]


def test_a_part_is_missing(tmp_path):
    path = write_parts(tmp_path)
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(ModelNotFoundError, match=r"3 parts .* m-00002-of-00003\.gguf is missing"):
        open_gguf(path)


@pytest.mark.parametrize(
    "name", ["m.gguf", "00001-of-00003.gguf", "m-00004-of-00003.gguf", "m-00001-of-00002.gguf"]
)
def test_a_part_has_lost_its_name(tmp_path, name):
    path = write_parts(tmp_path).rename(tmp_path / name)
    with pytest.raises(ModelFormatError, match=r"does not end in -00001-of-00003\.gguf to -0"):
        open_gguf(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no": 0}, "itself part 1 of 3 with 3 tensors in all, expected part 3 of 3 with 3 tens"),
        ({"no": None}, "says of itself that it is whole, expected part 3 of 3"),
        ({"count": 4}, "says of itself part 3 of 4"),
        ({"count": None}, "says of itself that it is whole"),
        ({"tensors.count": 7}, "part 3 of 3 with 7 tensors in all"),
        ({"count": -1}, "'split.count' is -1, expected a count"),
    ],
)
def test_parts_that_do_not_belong_together(tmp_path, changes, message):
    with pytest.raises(ModelFormatError, match=message) as error:
        open_gguf(write_parts(tmp_path, **changes))
    assert str(error.value).startswith(str(tmp_path / "m-00003-of-00003.gguf"))


def test_a_tensor_is_in_two_parts_or_in_none(tmp_path):
    write_parts(tmp_path, (1, 1))
    raw = Raw().tensor(name=b"t0")
    for key, value in {b"no": 1, b"count": 2, b"tensors.count": 2}.items():
        raw.add(b"split." + key, 5, struct.pack("<i", value))
    raw.write(tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(ModelFormatError, match=r"00002-of.*'t0' is in an earlier part as well"):
        open_gguf(tmp_path / "m-00001-of-00002.gguf")
    raw.tensors.clear()
    raw.write(tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(ModelFormatError, match=r"together have 1 tensors, .* is 2"):
        open_gguf(tmp_path / "m-00001-of-00002.gguf")


SPLIT_COUNTS = {
    "an array": (9, struct.pack("<IQI", 4, 1, 2), "'split.count' is an array, expected a count"),
    "a string": (8, Raw.string(b"2"), "'split.count' is '2', expected a count"),
    "a boolean": (7, b"\1", "'split.count' is True"),
    "too many": (4, struct.pack("<I", 2**32 - 1), "is 4294967295, the most is 99999"),
}


@pytest.mark.parametrize("name", SPLIT_COUNTS)
def test_counts_of_parts_that_make_no_sense(tmp_path, name):
    kind, payload, message = SPLIT_COUNTS[name]
    path = Raw().add(b"split.count", kind, payload).write(tmp_path / "m-00001-of-00002.gguf")
    with pytest.raises(ModelFormatError, match=message):
        open_gguf(path)


def test_parts_written_by_the_gguf_package(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    for index in range(5):
        writer.add_tensor(f"t{index}", np.full((2, 32), index, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(list(tmp_path.iterdir())) == 3
    with open_gguf(tmp_path / "m-00002-of-00003.gguf") as file:
        assert file.architecture == "llama"
        firsts = {name: t.data.view(np.float32)[0, 0] for name, t in file.tensors.items()}
    assert firsts == {f"t{index}": index for index in range(5)}
