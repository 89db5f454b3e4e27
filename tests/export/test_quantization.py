"""Quantized folders from end to end: transformers' logits with the dequantized weights."""

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ovgen.export.architectures import build_model
from ovgen.export.safetensors_checkpoint import open_safetensors
from ovgen.export.weight_reader import WeightReader
from ovgen.export.weight_store import MODEL_XML, WeightStore

TESTS = Path(__file__).parents[1]
RECORDS = np.load(TESTS / "data" / "packed_llama.npz")
PACKED = TESTS / "fixtures" / "packed"
PROMPT = [1, 17, 42, 99, 5, 63, 120, 8]  # of tests/oracles/packed_checkpoints.py


def exported_logits(kind: str, mode: str, folder: Path) -> np.ndarray:
    """Logits [tokens, vocab] of the exported graph, computed in float32."""
    with open_safetensors(PACKED / kind) as checkpoint, WeightStore(folder) as store:
        store.save(build_model(checkpoint, WeightReader(checkpoint, mode, store)))
    exact = {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    request = ov.Core().compile_model(folder / MODEL_XML, "CPU", exact).create_infer_request()
    size = len(PROMPT)
    inputs = {
        "input_ids": np.array([PROMPT]),
        "attention_mask": np.ones((1, size), np.int64),
        "position_ids": np.arange(size)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    return request.infer(inputs)["logits"][0].copy()


@pytest.mark.parametrize("mode", ["fp32", "exact"])
@pytest.mark.parametrize("kind", ["gptq", "gptq_act_order", "gptq_v2", "gptq_3bit", "awq", "fp8"])
def test_transformers_logits(kind, mode, tmp_path):
    logits = exported_logits(kind, mode, tmp_path)
    wanted = RECORDS[f"{kind}/logits"]
    assert np.ptp(wanted) > 1
    np.testing.assert_allclose(logits, wanted, atol=1e-4, rtol=0)
