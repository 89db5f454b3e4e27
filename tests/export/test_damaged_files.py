"""Every source format truncated, overwritten and with absurd configs: our errors, and no traces."""

import json
import random
import shutil
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_checkpoints import records, write_checkpoint
from tiny_gguf import VARIANTS, write_tiny_gguf

from ovgen.errors import ModelFormatError, OvgenError
from ovgen.export.architectures import build_model
from ovgen.export.exporter import export_model, new_folder, open_checkpoint
from ovgen.export.weight_reader import WeightReader
from ovgen.export.weight_store import WeightStore

PACKED = Path(__file__).parents[1] / "fixtures" / "packed"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
MOST_MEMORY = 32 << 20  # bytes; the files have less than two million
PLACES = 20


def write_safetensors_folder(folder: Path) -> Path:
    return write_checkpoint(folder, records()["llama"], dtype="BF16")


def write_sharded_folder(folder: Path) -> Path:
    return write_checkpoint(folder, records()["llama"], dtype="F16", num_shards=3)


def write_packed_folder(kind: str):
    def write(folder: Path) -> Path:
        write_checkpoint(folder, records()["llama"])
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(PACKED / kind / name, folder / name)
        return folder

    return write


def write_gguf(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return write_tiny_gguf(folder / "tiny.gguf", VARIANTS["Q4_K"])


def write_split_gguf(folder: Path) -> Path:
    whole = gguf.GGUFReader(write_gguf(folder))
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=8)
    for field in whole.fields.values():
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            kind, *inner = field.types
            writer.add_key_value(field.name, field.contents(), kind, inner[0] if inner else None)
    for tensor in whole.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / "tiny.gguf").unlink()
    return min(folder.glob("m-00001-of-*.gguf"))


FORMATS = {
    "safetensors": write_safetensors_folder,
    "shards": write_sharded_folder,
    "gptq": write_packed_folder("gptq_act_order"),
    "awq": write_packed_folder("awq"),
    "fp8": write_packed_folder("fp8"),
    "gguf": write_gguf,
    "split gguf": write_split_gguf,
}


@pytest.fixture(scope="module", params=FORMATS)
def sound(request, tmp_path_factory) -> Path:
    """A source of each format, to be copied before it is spoilt."""
    return FORMATS[request.param](tmp_path_factory.mktemp("sound") / "source")


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


def peak_memory() -> int:
    """The most bytes that this process has held so far."""
    resource = pytest.importorskip("resource")  # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def copy_of(sound: Path, target: Path) -> tuple[Path, Path]:
    """A copy of the whole source folder, and the source in it."""
    shutil.rmtree(target, ignore_errors=True)
    folder = sound if sound.is_dir() else sound.parent
    shutil.copytree(folder, target)
    return target, target if sound.is_dir() else target / sound.name


def weight_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".gguf"))


def read_everything(source: Path) -> None:
    """What an export reads of it, without the graph."""
    with open_checkpoint(source) as checkpoint, np.errstate(all="ignore"):
        for tensor in checkpoint.tensors.values():
            tensor.values(slice(0, 2))
            if tensor.grid is not None:
                tensor.codes(slice(0, 2))


def assert_one_line(error: BaseException, folder: Path) -> None:
    message = str(error)
    assert "\n" not in message
    assert str(folder) in message
    assert len(message) < 1000


def test_sound_sources_are_exported(sound, tmp_path):
    target = export_model(sound, tmp_path / "ir")
    assert (target / "openvino_model.xml").exists()


def test_truncated(sound, tmp_path):
    rng = random.Random(1)
    for _ in range(PLACES):
        folder, source = copy_of(sound, tmp_path / "copy")
        file = rng.choice(weight_files(folder))
        size = file.stat().st_size
        with file.open("r+b") as stream:  # less the padding after a GGUF's last tensor
            stream.truncate(rng.randrange(size - 32))
        with little_memory(), pytest.raises(OvgenError) as error:
            export_model(source, tmp_path / "ir")
        assert_one_line(error.value, folder)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_lengths_and_offsets_overwritten(sound, tmp_path):
    rng = random.Random(2)
    numbers = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
    refused = 0
    for _ in range(150):
        folder, source = copy_of(sound, tmp_path / "copy")
        file = rng.choice(weight_files(folder))
        with file.open("r+b") as stream:
            stream.seek(rng.choice((0, 4, 8, 16, rng.randrange(2000), rng.randrange(8000))))
            stream.write(rng.choice(numbers).to_bytes(8, "little")[: rng.choice((1, 4, 8))])
        with little_memory():
            try:
                read_everything(source)
            except OvgenError as error:
                refused += 1
                assert_one_line(error, folder)
    assert refused > 20


ABSURD = (None, -1, 0, 3, 2**31, 10**30, 1e308, float("nan"), True, "", "x", [], {}, [{}], {"a": 1})


def absurd_configs(config: dict) -> Iterator[tuple[str, dict]]:
    """The config without each of its fields, and with some absurd values for it."""
    rng = random.Random(3)
    for key in config:
        yield key, {k: v for k, v in config.items() if k != key}
        for value in rng.sample(ABSURD, 4):
            yield key, config | {key: value}


def absurd_quantizations(config: dict) -> Iterator[tuple[str, dict]]:
    """The config with each of the absurd values for each field of its quantization."""
    inner = config["quantization_config"]
    for key in inner:
        for value in ABSURD:
            yield key, config | {"quantization_config": inner | {key: value}}


@pytest.mark.parametrize(
    ("kind", "spoil", "wanted"),
    [
        ("fp8", absurd_configs, {"hidden_size", "model_type", "num_attention_heads"}),
        ("fp8", absurd_quantizations, {"quant_method", "weight_block_size"}),
        ("gptq", absurd_quantizations, {"quant_method", "bits", "group_size"}),
        ("awq", absurd_quantizations, {"quant_method", "bits", "group_size", "version"}),
    ],
)
def test_absurd_configs(kind, spoil, wanted, tmp_path):
    source = write_packed_folder(kind)(tmp_path / "copy")
    config = json.loads((source / "config.json").read_text())
    refused = set()
    before = peak_memory()
    for key, changed in spoil(config):
        (source / "config.json").write_text(json.dumps(changed))
        try:
            with (
                open_checkpoint(source) as checkpoint,
                new_folder(tmp_path / "ir") as folder,
                WeightStore(folder) as store,
            ):
                build_model(checkpoint, WeightReader(checkpoint, "exact", store))
                raise ModelFormatError("sound enough")  # nothing of it shall stay
        except OvgenError as error:
            if str(error) != "sound enough":
                refused.add(key)
                assert_one_line(error, source)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]
    assert peak_memory() - before < 2 * MOST_MEMORY
    assert wanted <= refused
