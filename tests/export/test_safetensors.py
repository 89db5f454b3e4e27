"""The reader against files of the `safetensors` package, and against files that are wrong."""

from pathlib import Path

import numpy as np
import pytest
from safetensors_files import write_raw, write_safetensors

from ovgen.errors import (
    ClosedError,
    ModelFormatError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from ovgen.export.safetensors import SafetensorsFile

TESTS = Path(__file__).parents[1]
PACKED = TESTS / "fixtures" / "packed"
ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def entry(**changes):
    return {"t": {**ENTRY, **changes}}


def test_reads_what_the_safetensors_package_wrote():
    with SafetensorsFile(PACKED / "gptq" / "model.safetensors") as file:
        assert file.metadata == {"format": "pt"}
        packed = file.tensors["model.layers.0.mlp.up_proj.qweight"]
        assert (packed.shape, packed.dtype, packed.nbytes) == ((8, 96), "I32", 3072)
        norm = file.tensors["model.norm.weight"]
        assert (norm.shape, norm.dtype, norm.data.shape) == ((64,), "F16", (1, 128))
        np.testing.assert_array_equal(norm.data.view(np.float16), np.ones((1, 64)))


def test_tensors_are_read_only_views_by_rows(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    path = write_safetensors(tmp_path / "f.safetensors", {"a": array, "b": array[0]})
    with SafetensorsFile(path) as file:
        a = file.tensors["a"]
        assert a.shape == (2, 3, 4)
        assert a.data.shape == (6, 16)
        assert not a.data.flags.owndata
        assert not a.data.flags.writeable
        np.testing.assert_array_equal(a.data.view(np.float32).reshape(2, 3, 4), array)
        np.testing.assert_array_equal(file.tensors["b"].data.view(np.float32), array[0])


def test_a_scalar_and_a_padded_header(tmp_path):
    text = b'{"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}     '
    path = write_raw(tmp_path / "f.safetensors", text, np.float32(2.5).tobytes())
    with SafetensorsFile(path) as file:
        assert file.tensors["s"].shape == ()
        assert file.tensors["s"].data.view(np.float32).tolist() == [[2.5]]
        assert file.metadata == {}


def test_a_file_without_tensors(tmp_path):
    with SafetensorsFile(write_raw(tmp_path / "f.safetensors", {})) as file:
        assert file.tensors == {}


def test_closed_file_gives_no_tensors_and_held_views_live_on(tmp_path):
    path = write_safetensors(tmp_path / "f.safetensors", {"a": np.ones((2, 2), np.float32)})
    file = SafetensorsFile(path)
    data = file.tensors["a"].data
    file.release_pages()
    file.close()
    file.close()
    file.release_pages()
    with pytest.raises(ClosedError, match=r"f\.safetensors"):
        _ = file.tensors
    assert data.view(np.float32).sum() == 4


BAD = {
    "no JSON": (b"{nonsense", "not valid JSON"),
    "no object": (b"[1]", "begins with b'\\[1\\]'"),
    "not UTF-8": (b'{"\xff":1}', "not valid JSON: 'utf-8' codec"),
    "nested deeply": (b'{"a":' + b"[" * 100_000, "nested too deeply"),
    "a huge number": (b'{"a":' + b"9" * 10_000 + b"}", "not valid JSON"),
    "name twice": (
        b'{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        "'t' appears twice",
    ),
    "dtype twice": (
        b'{"t":{"dtype":"U8","dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        "'dtype' appears twice",
    ),
    "metadata": ({"__metadata__": {"a": 1}}, "'__metadata__' is not an object of strings"),
    "metadata kind": ({"__metadata__": []}, "'__metadata__' is not an object of strings"),
    "entry": ({"t": [1]}, "entry of tensor 't' is not an object"),
    "no dtype": ({"t": {"shape": [4], "data_offsets": [0, 16]}}, "has no 'dtype'"),
    "no shape": ({"t": {"dtype": "F32", "data_offsets": [0, 16]}}, "has no 'shape'"),
    "no offsets": ({"t": {"dtype": "F32", "shape": [4]}}, "has no 'data_offsets'"),
    "dtype kind": (entry(dtype=7), "dtype 7, expected a string"),
    "negative dim": (entry(shape=[-2, -2]), r"shape \[-2, -2\], expected up to 8 counts"),
    "float dim": (entry(shape=[2.0, 2]), r"shape \[2.0, 2\]"),
    "true dim": (entry(shape=[True, 4]), r"shape \[True, 4\]"),
    "shape kind": (entry(shape="22"), "shape '22'"),
    "many axes": (entry(shape=[1] * 7 + [2, 2]), "expected up to 8 counts"),
    "huge dim": (entry(shape=[2**70]), "expected up to 8 counts"),
    "shape and size": (entry(shape=[2, 3]), "takes 24 bytes, its data_offsets span 16"),
    "dtype and size": (entry(dtype="F16"), "takes 8 bytes, its data_offsets span 16"),
    "empty": (entry(shape=[0, 2], data_offsets=[0, 0]), "out of order, empty or beyond"),
    "backwards": (entry(data_offsets=[16, 0]), "bytes 16 to 0 of 16, which are out of order"),
    "beyond": (entry(data_offsets=[16, 32]), "bytes 16 to 32 of 16"),
    "far beyond": (entry(data_offsets=[2**64 - 8, 2**64 + 8]), "beyond the end"),
    "negative offset": (entry(data_offsets=[-16, 0]), r"data_offsets \[-16, 0\], expected two"),
    "one offset": (entry(data_offsets=[16]), r"data_offsets \[16\], expected two"),
    "offset kind": (entry(data_offsets="ab"), "data_offsets 'ab', expected two"),
    "gap": (
        {**entry(shape=[2], data_offsets=[0, 8]), "u": {**ENTRY, "shape": [1]} | {
            "data_offsets": [12, 16]}},
        "tensor 'u' follows a gap: it begins at byte 12, expected 8",
    ),
    "overlap": (
        {**entry(), "u": {**ENTRY, "shape": [2], "data_offsets": [8, 16]}},
        "tensor 'u' overlaps the one before it: it begins at byte 8, expected 16",
    ),
    "same place": ({**entry(), "u": ENTRY}, "'u' overlaps"),
    "gap at the start": (entry(shape=[2], data_offsets=[8, 16]), "'t' follows a gap"),
    "left over": (entry(shape=[2], data_offsets=[0, 8]), "take 8 bytes, 16 follow the header"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_header_is_one_line_with_the_files_name(tmp_path, name):
    header, message = BAD[name]
    path = write_raw(tmp_path / "f.safetensors", header, bytes(16))
    with pytest.raises(ModelFormatError, match=message) as error:
        SafetensorsFile(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_sound_header_passes(tmp_path):
    SafetensorsFile(write_raw(tmp_path / "f.safetensors", entry(), bytes(16))).close()


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (100_000_001, "a header of 100000001 bytes, the most is 100000000"),
        (2**64 - 1, "the most is"),
        (70, "truncated: a header of 70 bytes"),
        (0, "the header begins with b''"),
    ],
)
def test_lengths_of_the_header(tmp_path, length, message):
    path = write_raw(tmp_path / "f.safetensors", {}, bytes(16), length=length)
    with pytest.raises(ModelFormatError, match=message):
        SafetensorsFile(path)


def test_short_empty_missing_and_folder(tmp_path):
    path = tmp_path / "f.safetensors"
    with pytest.raises(ModelNotFoundError, match="no such file"):
        SafetensorsFile(path)
    path.write_bytes(b"")
    with pytest.raises(ModelFormatError, match="the file is empty, expected a safetensors file"):
        SafetensorsFile(path)
    path.write_bytes(bytes(7))
    with pytest.raises(ModelFormatError, match="truncated: 7 bytes"):
        SafetensorsFile(path)
    with pytest.raises(ModelFormatError, match="is a folder"):
        SafetensorsFile(tmp_path)


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0", "C64", "f32", ""])
def test_dtypes_that_are_not_read_are_named(tmp_path, dtype):
    path = write_raw(tmp_path / "f.safetensors", entry(dtype=dtype), bytes(16))
    with pytest.raises(UnsupportedModelError, match=f"dtype '{dtype}'; supported dtypes: F64, F32"):
        SafetensorsFile(path)
