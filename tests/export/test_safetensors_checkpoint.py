"""Model folders: what the shards and the index say, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors_files import write_folder, write_safetensors

from ovgen.errors import (
    ClosedError,
    ModelFormatError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from ovgen.export.safetensors_checkpoint import open_safetensors

TESTS = Path(__file__).parents[1]
A = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.ones((2, 4), np.float16)
SHARDS = {
    "model-00001-of-00002.safetensors": {"a": A},
    "model-00002-of-00002.safetensors": {"b": B},
}
FIRST, SECOND = SHARDS
WEIGHT_MAP = {"a": FIRST, "b": SECOND}


def write_sharded(folder: Path, weight_map=WEIGHT_MAP, shards=SHARDS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 4}')
    index = {"metadata": {"total_size": 64}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, tensors in shards.items():
        write_safetensors(folder / name, tensors)
    return folder


def test_one_file(tmp_path):
    folder = write_folder(tmp_path / "m", {"a": A, "b": B}, {"model_type": "gpt2", "n_embd": 4})
    with open_safetensors(folder) as checkpoint:
        assert checkpoint.path == folder
        assert checkpoint.config == {"model_type": "gpt2", "n_embd": 4}
        assert list(checkpoint.tensors) == ["a", "b"]
        a, b = checkpoint.tensors["a"], checkpoint.tensors["b"]
        assert (a.name, a.shape, a.dtype, a.grid, a.column_order) == (
            "a",
            (3, 4),
            "F32",
            None,
            None,
        )
        assert b.dtype == "F16"
        np.testing.assert_array_equal(a.values(slice(1, 3)), A[1:])
        np.testing.assert_array_equal(a.values(np.array([2, 0])), A[[2, 0]])
        np.testing.assert_array_equal(b.values(slice(None)), np.ones((2, 4), np.float32))
        checkpoint.release_pages()
        np.testing.assert_array_equal(a.values(slice(None)), A)
        with pytest.raises(TypeError, match="'a' has no grid"):
            a.codes(slice(None))


def test_vectors_and_higher_ranks_count_as_rows(tmp_path):
    cube = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    folder = write_folder(tmp_path / "m", {"cube": cube, "vector": A[0]})
    with open_safetensors(folder) as checkpoint:
        assert checkpoint.tensors["vector"].values(slice(None)).shape == (1, 4)
        np.testing.assert_array_equal(checkpoint.tensors["cube"].values(slice(3, 6)), cube[1])


def test_shards(tmp_path):
    with open_safetensors(write_sharded(tmp_path / "m")) as checkpoint:
        assert sorted(checkpoint.tensors) == ["a", "b"]
        np.testing.assert_array_equal(checkpoint.tensors["a"].values(slice(None)), A)


def test_a_single_file_comes_before_an_index(tmp_path):
    folder = write_sharded(tmp_path / "m", {"a": "model-00001-of-00001.safetensors"}, {})
    write_folder(folder, {"a": A})
    with open_safetensors(folder) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


def test_closed_checkpoint(tmp_path):
    checkpoint = open_safetensors(write_folder(tmp_path / "m", {"a": A}))
    values = checkpoint.tensors["a"].values(slice(None))
    checkpoint.close()
    checkpoint.close()
    checkpoint.release_pages()
    with pytest.raises(ClosedError, match="the checkpoint is closed"):
        _ = checkpoint.tensors
    np.testing.assert_array_equal(values, A)


def test_index_names_a_missing_shard(tmp_path):
    folder = write_sharded(tmp_path / "m")
    (folder / SECOND).unlink()
    with pytest.raises(ModelNotFoundError, match=f"names '{SECOND}', which is missing"):
        open_safetensors(folder)


@pytest.mark.parametrize(
    ("weight_map", "shards", "message"),
    [
        (WEIGHT_MAP | {"c": SECOND}, SHARDS, f"'c' in '{SECOND}', but it is in no shard"),
        ({"a": SECOND, "b": FIRST}, SHARDS, f"'a' in '{SECOND}', but it is in {FIRST}"),
        (
            WEIGHT_MAP,
            {FIRST: {"a": A}, SECOND: {"a": A, "b": B}},
            f"'a' is in both {FIRST} and {SECOND}",
        ),
    ],
)
def test_index_and_shards_disagree(tmp_path, weight_map, shards, message):
    with pytest.raises(ModelFormatError, match=message):
        open_safetensors(write_sharded(tmp_path / "m", weight_map, shards))


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        "x\0.safetensors",
        ".safetensors",
        "",
        "pytorch_model.bin",
        7,
        None,
        ["x.safetensors"],
    ],
)
def test_index_names_something_that_is_no_file_of_the_folder(tmp_path, shard):
    write_safetensors(tmp_path / "secret.safetensors", {"a": A})
    folder = write_sharded(tmp_path / "m", {"a": shard})
    with pytest.raises(ModelFormatError, match=r"expected the name of a file \*\.safetensors in"):
        open_safetensors(folder)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_index_without_a_weight_map(tmp_path, weight_map):
    with pytest.raises(ModelFormatError, match="'weight_map' is missing, empty or not an object"):
        open_safetensors(write_sharded(tmp_path / "m", weight_map))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object but list"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_damaged_json(tmp_path, content, message):
    for name in ("config.json", "model.safetensors.index.json"):
        folder = write_sharded(tmp_path / name)
        (folder / name).write_bytes(content)
        with pytest.raises(ModelFormatError, match=message) as error:
            open_safetensors(folder)
        assert str(error.value).startswith(f"{folder / name}: ")
        assert "\n" not in str(error.value)


def test_files_that_are_missing(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        open_safetensors(tmp_path / "absent")
    folder = write_folder(tmp_path / "m", {"a": A})
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"config\.json: no such file"):
        open_safetensors(folder)
    folder = write_folder(tmp_path / "n", {"a": A})
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"neither.*consolidated\.safetensors is there"):
        open_safetensors(folder)


def test_a_pickle_is_refused_with_advice(tmp_path):
    folder = write_folder(tmp_path / "m", {"a": A})
    (folder / "model.safetensors").rename(folder / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(UnsupportedModelError, match=r"a pickle \(pytorch_model-0.*save_pretrained"):
        open_safetensors(folder)


@pytest.mark.parametrize("method", ["bitsandbytes", "aqlm", "hqq", None, 7])
def test_quantizations_that_are_not_read_are_named(tmp_path, method):
    config = {"model_type": "llama", "quantization_config": {"quant_method": method}}
    folder = write_folder(tmp_path / "m", {"a": A}, config)
    with pytest.raises(UnsupportedModelError, match=f"quantized with {method!r}; supported: awq"):
        open_safetensors(folder)


def test_quantization_config_of_the_wrong_kind(tmp_path):
    folder = write_folder(tmp_path / "m", {"a": A}, {"quantization_config": "gptq"})
    with pytest.raises(ModelFormatError, match=r"'quantization_config' in config\.json is not"):
        open_safetensors(folder)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux does")
def test_nothing_stays_open_after_an_error(tmp_path):
    folder = write_sharded(tmp_path / "m", WEIGHT_MAP | {"c": SECOND})
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(ModelFormatError):
            open_safetensors(folder)
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 20
