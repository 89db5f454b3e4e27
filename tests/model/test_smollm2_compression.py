"""SmolLM2-135M in few bits: no farther from float32 than NNCF takes it.

The records come from tests/oracles/smollm2_nncf.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model.test_smollm2 import DATA, fidelity, load_runner

from ovgen.engine_config import EngineConfig
from ovgen.export.compression import CompressionConfig
from ovgen.export.exporter import export_model

pytestmark = pytest.mark.model

RECORDS = json.loads((DATA / "smollm2_nncf.json").read_text(encoding="utf-8"))["results"]
CALIBRATION = Path(__file__).parents[2] / "README.md"  # no text that the fidelity is taken on


def kl(gguf: Path, folder: Path, **options: Any) -> float:
    """The mean KL divergence from float32, computed without further rounding."""
    calibration = options.pop("calibration", None)
    export_model(gguf, folder, weights=CompressionConfig(**options), calibration=calibration)
    return fidelity(load_runner(folder, EngineConfig(precision="exact")))[1]


@pytest.mark.parametrize(
    "record", RECORDS, ids=lambda r: f"{r['mode']}-{r['group_size']}-{r['ratio']}"
)
def test_not_above_nncf(record: dict[str, Any], smollm2_gguf: Path, tmp_path: Path) -> None:
    options = {"mode": record["mode"], "group_size": record["group_size"]}
    if record["ratio"] is not None and record["ratio"] < 1:
        options["ratio"] = record["ratio"]
    found = kl(smollm2_gguf, tmp_path / "ir", **options)
    print(f"\n{record}: KL {found:.5f}")
    assert found <= record["kl"]
    if record["mode"].startswith("int8"):
        assert found < 0.005


def test_a_text_brings_it_closer(smollm2_gguf: Path, tmp_path: Path) -> None:
    (nncf,) = (r for r in RECORDS if r["mode"] == "int4_asym" and r["group_size"] == 128
               and r["ratio"] == 1)  # fmt: skip
    options = {"mode": "int4_asym", "group_size": 128, "calibration": CALIBRATION}
    found = kl(smollm2_gguf, tmp_path / "ir", **options)
    print(f"\ncalibrated: KL {found:.5f}")
    assert found < 0.7 * nncf["kl"]
