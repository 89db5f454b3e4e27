"""Weights stream through memory: the peak does not grow with the model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ovgen

# Matrices of 32 MB as halves, whose values are made when they are asked for.
SCRIPT = """
import sys
from pathlib import Path

import numpy as np
import openvino as ov
from export.small_tensors import ArrayCheckpoint, ArrayTensor
from openvino import opset15 as op

from ovgen.export.compression import CompressionConfig
from ovgen.export.graph_weights import linear
from ovgen.export.weight_reader import WeightReader
from ovgen.export.weight_store import WeightStore

ROWS, COLS = 16384, 1024
POOL = np.random.default_rng(0).standard_normal((2 * 1024, COLS)).astype(np.float32)


class Endless(ArrayTensor):
    shape = (ROWS, COLS)

    def values(self, rows):
        return POOL[np.arange(ROWS)[rows] % len(POOL)]


def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


folder, mode, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
before = peak()
names = [f"model.layers.{number}.w.weight" for number in range(count)]
checkpoint = ArrayCheckpoint.of(*(Endless(name, POOL) for name in names))
x = op.parameter([-1, -1, COLS], ov.Type.f32)
with WeightStore(Path(folder)) as store:
    reader = WeightReader(checkpoint, CompressionConfig(mode=mode), store)
    results = [op.result(linear(x, reader.matrix(name, (ROWS, COLS)))) for name in names]
    store.save(ov.Model(results, [x, *store.placeholders], "test"))
print(peak() - before, Path(folder, "openvino_model.bin").stat().st_size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux counts it")
@pytest.mark.parametrize(("mode", "count"), [("fp16", 8), ("int8_asym", 8), ("int4_asym", 4)])
def test_the_peak_is_a_few_chunks(mode: str, count: int, tmp_path: Path) -> None:
    folders = [Path(ovgen.__file__).parents[1], Path(__file__).parents[1]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), mode, str(count)]
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, timeout=100
    )
    peak, size = map(int, result.stdout.split())
    assert size > count * 0.52 * (1 << 24)
    assert peak < 100e6
