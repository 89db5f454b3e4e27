"""Records how far NNCF's weight compression takes SmolLM2 from float32.

    python tests/oracles/smollm2_nncf.py CHECKPOINT

CHECKPOINT is the GGUF, dequantized and saved by transformers. Writes tests/data/smollm2_nncf.json.
"""

import argparse
import json
import tempfile
from pathlib import Path

import nncf
import numpy as np
import openvino as ov
from optimum.intel import OVModelForCausalLM
from smollm2_reference import DATA, estimated_kl

CASES = [
    ("int8_sym", None, None),
    ("int8_asym", None, None),
    *((mode, group, ratio) for mode in ("int4_sym", "int4_asym")
      for group in (128, 64) for ratio in (1.0, 0.8)),
    ("nf4", 64, 1.0),
]  # fmt: skip
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


def log_probs(model: ov.Model, windows: np.ndarray) -> np.ndarray:
    """float32 log-softmax at every position, [windows, length, vocab]."""
    request = ov.Core().compile_model(model, "CPU", EXACT).create_infer_request()
    length, rows = windows.shape[1], []
    for window in windows:
        request.reset_state()
        request.infer(
            {
                "input_ids": window[None],
                "attention_mask": np.ones((1, length), np.int64),
                "position_ids": np.arange(length, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
        logits = request.get_output_tensor(0).data[0]
        shifted = logits - logits.max(-1, keepdims=True)
        rows.append(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
    return np.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    arguments = parser.parse_args()
    with np.load(DATA / "smollm2_kl.npz") as file:
        record = dict(file)
    windows = record["token_ids"].astype(np.int64)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        exported = OVModelForCausalLM.from_pretrained(
            arguments.checkpoint, export=True, load_in_8bit=False, compile=False
        )
        exported.save_pretrained(folder)
        for mode, group, ratio in CASES:
            options = {} if group is None else {"group_size": group, "ratio": ratio}
            model = nncf.compress_weights(
                ov.Core().read_model(Path(folder) / "openvino_model.xml"),
                mode=nncf.CompressWeightsMode(mode),
                advanced_parameters=nncf.AdvancedCompressionParameters(
                    # 128 does not divide the hidden size of 576: 64 is taken there.
                    group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
                ),
                **options,
            )
            kl = float(estimated_kl(record, log_probs(model, windows)).mean())
            results.append({"mode": mode, "group_size": group, "ratio": ratio, "kl": round(kl, 6)})
            print(results[-1], flush=True)
    lines = ",\n".join(json.dumps(result) for result in results)
    header = f'{{"nncf": "{nncf.__version__}", "results": [\n'
    (DATA / "smollm2_nncf.json").write_text(f"{header}{lines}\n]}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
