"""Weights that are mapped by us, and dropped once the device has packed them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ovgen.engine_config import EngineConfig
from ovgen.errors import ModelFormatError
from ovgen.model.mapped_weights import MappedWeights
from ovgen.model.paged_model import load_paged_model
from ovgen.model.paged_runner import PagedRunner

LLAMA = Path(__file__).parents[1] / "fixtures" / "tiny" / "llama"
SIZE = 8 << 20


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    total, is_its = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_its = line.endswith(str(path))
        elif is_its and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(np.arange(SIZE, dtype=np.uint32).astype(np.uint8).tobytes())
    return path


def test_the_content_is_there_before_and_after_it_is_dropped(file: Path):
    weights = MappedWeights(file)
    wanted = np.fromfile(file, np.uint8)
    np.testing.assert_array_equal(weights.tensor.data, wanted)
    assert resident(file) >= SIZE
    weights.drop_pages()
    assert resident(file) == 0
    np.testing.assert_array_equal(weights.tensor.data, wanted)
    with weights.dropping_pages():
        np.testing.assert_array_equal(weights.tensor.data, wanted)
    assert resident(file) == 0


def test_an_empty_file(tmp_path: Path):
    (tmp_path / "empty.bin").touch()
    weights = MappedWeights(tmp_path / "empty.bin")
    weights.drop_pages()
    assert weights.tensor.get_size() == 0


def test_a_graph_whose_weights_are_cut_off_is_refused(tmp_path: Path):
    folder = Path(shutil.copytree(LLAMA, tmp_path / "llama"))
    binary = folder / "openvino_model.bin"
    binary.write_bytes(binary.read_bytes()[:5000])
    with pytest.raises(ModelFormatError, match=r"openvino_model\.xml cannot be read"):
        load_paged_model(folder, EngineConfig())


@pytest.mark.parametrize("drops", [True, False])
def test_a_runner_that_is_warm_has_nothing_of_the_file_in_memory(
    tmp_path: Path, drops: bool, monkeypatch: pytest.MonkeyPatch
):
    if not drops:
        monkeypatch.setattr(MappedWeights, "drop_pages", lambda self: None)
    folder = Path(shutil.copytree(LLAMA, tmp_path / "llama"))
    runner = PagedRunner(load_paged_model(folder, EngineConfig(), 4), max_running_requests=1)
    runner.warm_up()
    assert (resident(folder / "openvino_model.bin") == 0) == drops
    runner.close()
