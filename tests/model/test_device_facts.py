"""What there is to choose, of a real device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from ovgen.errors import ConfigError, DeviceError
from ovgen.model.device_facts import device_facts, identity
from ovgen.model.graph_passes import has_integer_weights

LLAMA = Path(__file__).parents[1] / "fixtures" / "tiny" / "llama"


def test_the_cpu():
    facts = device_facts(LLAMA, "CPU")
    assert facts.precisions[0] == "f32"
    assert {"KV_CACHE_PRECISION", "INFERENCE_NUM_THREADS"} <= facts.settable
    assert "WEIGHTS_PATH" not in facts.settable
    assert facts.kv_precision in ("u8", "f16", "bf16", "f32")
    assert (facts.has_integer_weights, facts.weight_group) == (False, None)


@pytest.mark.parametrize("device", ["AUTO", "AUTO:CPU", "HETERO:CPU"])
def test_virtual_devices_cannot_be_tuned(device: str):
    with pytest.raises(ConfigError, match="stands for other devices"):
        device_facts(LLAMA, device)


def test_an_unknown_device():
    with pytest.raises(DeviceError, match="available here"):
        device_facts(LLAMA, "TPU")


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [(np.int8, (64, 64), True), (np.uint8, (64, 64), True), (np.int8, (4,), False),
     (np.int64, (64, 64), False), (np.float16, (64, 64), False)],
)  # fmt: skip
def test_integer_weights(kind, shape, expected):
    node = op.convert(op.constant(np.ones(shape, kind)), "f32")
    assert has_integer_weights(ov.Model([node], [])) is expected


def test_the_same_machine_and_files_are_the_same():
    assert identity(LLAMA, "CPU") == identity(LLAMA, "CPU")
    machine, _ = identity(LLAMA, "CPU")
    assert machine.device_name
    assert machine.openvino == ov.get_version()
