"""The reader against files written by the `gguf` package, whole and spoilt."""

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from raw_gguf import Raw

from ovgen.errors import (
    ClosedError,
    ModelFormatError,
    ModelNotFoundError,
    OvgenError,
    UnsupportedModelError,
)
from ovgen.export.gguf import GGMLType, GGUFFile, open_gguf

WEIGHT = np.arange(4 * 64, dtype=np.float32).reshape(4, 64)


def write_sample(path: Path) -> Path:
    """One of each kind of metadata and three tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "naïve 😀")
    writer.add_array("strings", ["a", "ß", "\n", "😀"])
    writer.add_array("ints", [1, -2, 3])
    writer.add_array("floats", [0.5, 1.5])
    writer.add_array("bools", [True, False])
    writer.add_tensor("norm.weight", np.ones(8, np.float32))
    writer.add_tensor("half.weight", WEIGHT[:2].astype(np.float16))
    blocks = gguf.quants.quantize(WEIGHT, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    return write_sample(tmp_path_factory.mktemp("gguf") / "sample.gguf")


@pytest.fixture(scope="module")
def header_size(sample) -> int:
    """Bytes before the tensor data."""
    return min(t.data_offset for t in gguf.GGUFReader(sample).tensors)


def test_reads_every_kind_of_metadata(sample):
    with open_gguf(sample) as file:
        assert file.version == 3
        assert file.architecture == "llama"
        scalars = {k: v for k, v in file.metadata.items() if not isinstance(v, np.ndarray)}
        arrays = {k: v.tolist() for k, v in file.metadata.items() if isinstance(v, np.ndarray)}
    assert scalars == {
        "general.architecture": "llama",
        "u8": 255,
        "i8": -128,
        "u16": 65535,
        "i16": -32768,
        "u32": 2**32 - 1,
        "i32": -(2**31),
        "u64": 2**64 - 1,
        "i64": -(2**63),
        "f32": 0.5,
        "f64": 0.1,
        "yes": True,
        "text": "naïve 😀",
        "strings": ["a", "ß", "\n", "😀"],
    }
    assert arrays == {"ints": [1, -2, 3], "floats": [0.5, 1.5], "bools": [True, False]}


def test_reads_tensors_as_views(sample):
    with open_gguf(sample) as file:
        norm, half, q = (file.tensors[n] for n in ("norm.weight", "half.weight", "q.weight"))
        assert (norm.shape, norm.type, norm.data.shape) == ((8,), GGMLType.F32, (1, 32))
        assert (half.shape, half.type, half.data.shape) == ((2, 64), GGMLType.F16, (2, 128))
        assert (q.shape, q.type, q.data.shape, q.nbytes) == ((4, 64), GGMLType.Q8_0, (4, 68), 272)
        assert not q.data.flags.owndata
        assert not q.data.flags.writeable
        np.testing.assert_array_equal(norm.data.view(np.float32), np.ones((1, 8)))
        wanted = gguf.quants.quantize(WEIGHT, gguf.GGMLQuantizationType.Q8_0)
        np.testing.assert_array_equal(q.data, wanted)


def test_leading_axes_become_rows(tmp_path):
    path = Raw().tensor(dims=(2, 3, 5)).write(tmp_path / "f.gguf")
    with open_gguf(path) as file:
        assert file.tensors["t"].shape == (5, 3, 2)
        assert file.tensors["t"].data.shape == (15, 8)


def test_reads_version_2_and_other_alignments(tmp_path):
    raw = Raw(version=2).add(b"general.alignment", 4, struct.pack("<I", 8)).tensor(offset=8)
    with open_gguf(raw.write(tmp_path / "f.gguf")) as file:
        assert file.version == 2
        assert file.tensors["t"].nbytes == 128


def test_closed_file_gives_no_tensors_and_held_views_live_on(sample):
    file = GGUFFile(sample)
    data = file.tensors["norm.weight"].data
    file.close()
    file.close()
    with pytest.raises(ClosedError, match=r"sample\.gguf"):
        _ = file.tensors
    assert data.view(np.float32).sum() == 8


def test_typed_getters(sample):
    with open_gguf(sample) as file:
        assert file.get_int("u32", min=1) == 2**32 - 1
        assert file.get_int("absent", default=7) == 7
        assert file.get_float("f32") == 0.5
        assert file.get_float("u8") == 255.0
        assert file.get_bool("yes") is True
        assert file.get_bool("absent", default=False) is False
        assert file.get_str("text") == "naïve 😀"
        assert file.get_strings("strings")[1] == "ß"
        assert file.get_numbers("ints").tolist() == [1, -2, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.get_int("absent"), "no 'absent'"),
        (lambda f: f.get_int("text"), "'text' is 'naïve 😀', expected an integer"),
        (lambda f: f.get_int("yes"), "'yes' is True, expected an integer"),
        (lambda f: f.get_int("u8", max=254), "'u8' is 255, the allowed range is ..254"),
        (lambda f: f.get_int("i8", min=0, max=9), "'i8' is -128, the allowed range is 0..9"),
        (lambda f: f.get_float("yes"), "expected a finite number"),
        (lambda f: f.get_bool("u8"), "expected a boolean"),
        (lambda f: f.get_str("u8"), "expected a string"),
        (lambda f: f.get_strings("ints"), "an array, expected an array of strings"),
        (lambda f: f.get_numbers("strings"), "an array, expected an array of numbers"),
    ],
)
def test_getters_name_the_key_and_what_was_expected(sample, call, message):
    with open_gguf(sample) as file, pytest.raises(ModelFormatError) as error:
        call(file)
    assert message in str(error.value)
    assert str(sample) in str(error.value)


def _number(kind: str, value: float) -> bytes:
    return struct.pack("<" + kind, value)


SPOILT = {
    "magic": (Raw(magic=b"PK\3\4"), r"begins with b'PK\\x03\\x04'"),
    "tensor beyond the end": (Raw().tensor(offset=224), "truncated: tensor 't' needs 128 bytes"),
    "offset far away": (Raw().tensor(offset=2**63), "truncated"),
    "misaligned": (Raw().tensor(offset=4), "offset 4, not a multiple of 32"),
    "tensor count": (Raw(num_tensors=2**40), "1099511627776 tensors needs"),
    "kv count": (Raw(num_kv=2**62), "metadata keys"),
    "array length": (
        Raw().add(b"k", 9, struct.pack("<IQ", 4, 2**60)),
        "'k' needs 4611686018427387904 bytes",
    ),
    "string array length": (Raw().add(b"k", 9, struct.pack("<IQ", 8, 2**61 + 1)), "'k' needs"),
    "string in an array": (
        Raw().add(b"k", 9, struct.pack("<IQQ", 8, 1, 2**40)),
        "item 0 of metadata key 'k' ends beyond",
    ),
    "string length": (Raw().add(b"k", 8, struct.pack("<Q", 2**50)), "metadata key 'k' needs"),
    "key length": (Raw().add(b"x" * 70000, 4, _number("I", 1)), "the most is 65535"),
    "nested array": (Raw().add(b"k", 9, struct.pack("<IQ", 9, 1)), "array of arrays"),
    "value type": (Raw().add(b"k", 13, b"\0" * 8), "unknown type 13"),
    "array item type": (Raw().add(b"k", 9, struct.pack("<IQ", 77, 1)), "unknown type 77"),
    "boolean": (Raw().add(b"k", 7, b"\2"), "a boolean with the value 2"),
    "utf-8 value": (Raw().add(b"k", 8, Raw.string(b"\xff")), "not valid UTF-8"),
    "utf-8 key": (Raw().add(b"\xc3", 4, _number("I", 1)), "not valid UTF-8"),
    "utf-8 item": (
        Raw().add(b"k", 9, struct.pack("<IQ", 8, 1) + Raw.string(b"\x80")),
        "item 0 of metadata key 'k' is not valid UTF-8",
    ),
    "key twice": (
        Raw().add(b"k", 4, _number("I", 1)).add(b"k", 4, _number("I", 2)),
        "'k' appears twice",
    ),
    "tensor twice": (Raw().tensor().tensor(), "tensor 't' appears twice"),
    "dims": (Raw().tensor(dims=(1, 1, 1, 1, 1)), "5 dimensions"),
    "no dims": (Raw().tensor(dims=()), "0 dimensions"),
    "zero dim": (Raw().tensor(dims=(32, 0)), "dimension of 0"),
    "overflow": (Raw().tensor(dims=(2**40, 2**40)), "truncated"),
    "row not whole blocks": (Raw().tensor(dims=(33,), kind=8), "rows of 33 values"),
    "alignment": (Raw().add(b"general.alignment", 4, _number("I", 24)), "24, expected a power"),
    "zero alignment": (Raw().add(b"general.alignment", 4, _number("I", 0)), "expected a power"),
    "alignment type": (Raw().add(b"general.alignment", 8, Raw.string(b"32")), "not an integer"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_damage_is_one_line_with_the_files_name(tmp_path, name):
    raw, message = SPOILT[name]
    path = raw.write(tmp_path / "spoilt.gguf")
    with pytest.raises(ModelFormatError, match=message) as error:
        GGUFFile(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


UNSUPPORTED = {
    "version": (Raw(version=4), "version 4; ovgen reads versions 2 and 3"),
    "big endian": (Raw(version=3 << 24), "big-endian"),
    "known type": (
        Raw().tensor(kind=16),
        r"'t' is of type 16 \(IQ2_XXS\); supported types: F32, F16",
    ),
    "unknown type": (Raw().tensor(kind=999), r"type 999 \(unknown\)"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_sound_files_that_are_not_read(tmp_path, name):
    raw, message = UNSUPPORTED[name]
    with pytest.raises(UnsupportedModelError, match=message):
        GGUFFile(raw.write(tmp_path / "other.gguf"))


def test_missing_empty_and_folder(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such file"):
        GGUFFile(tmp_path / "absent.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelFormatError, match="empty"):
        GGUFFile(tmp_path / "empty.gguf")
    with pytest.raises(ModelFormatError, match="folder"):
        GGUFFile(tmp_path)


def test_truncated_anywhere(sample, tmp_path):
    whole = sample.read_bytes()
    path = tmp_path / "cut.gguf"
    for size in range(1, len(whole), 1):
        path.write_bytes(whole[:size])
        if size + 32 > len(whole):  # the padding after the last tensor may be missing
            continue
        with pytest.raises(ModelFormatError):
            GGUFFile(path)


def test_random_damage_raises_only_our_errors(sample, header_size, tmp_path):
    whole = sample.read_bytes()
    rng = random.Random(7)
    path = tmp_path / "damaged.gguf"
    messages = []
    for _ in range(2000):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(header_size)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        path.write_bytes(damaged)
        try:
            GGUFFile(path).close()
        except OvgenError as error:
            messages.append(str(error))
    assert 500 < len(messages) < 2000
    assert not [message for message in messages if "\n" in message]


def test_a_large_vocabulary_is_read_whole(tmp_path):
    words = [f"word{i}" for i in range(50_000)]
    payload = struct.pack("<IQ", 8, len(words)) + b"".join(Raw.string(w.encode()) for w in words)
    with open_gguf(Raw().add(b"k", 9, payload).write(tmp_path / "f.gguf")) as file:
        assert file.get_strings("k") == words
