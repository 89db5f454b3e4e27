"""How far openvino-genai's conversion of the SmolLM2 GGUF is from the file's own float32 values.

Runs the IR of genai_gguf_export.py (or any stateful IR) with plain openvino over the windows of
smollm2_ids.json and prints its mean KL against transformers and its perplexity.

    python tests/oracles/genai_gguf_kl.py smollm2.gguf IR_DIRECTORY [--property NAME=VALUE ...]
"""

import argparse
import json
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from smollm2_reference import DATA, full_kl, load, log_probs, perplexity


def ir_log_probs(directory: Path, windows: np.ndarray, properties: dict[str, str]) -> torch.Tensor:
    """float32 log-softmax at every position, [windows, length, vocab]; one fresh state a window."""
    model = ov.Core().compile_model(directory / "openvino_model.xml", "CPU", properties)
    names = {port.any_name for port in model.inputs}
    request = model.create_infer_request()
    rows = []
    for window in windows:
        ids = window[None].astype(np.int64)
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.shape[1])[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        request.reset_state()
        logits = request.infer({name: inputs[name] for name in names})["logits"]
        rows.append(torch.from_numpy(logits[0].astype(np.float32)).log_softmax(-1))
    return torch.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--property", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    properties = dict(pair.split("=", 1) for pair in arguments.property)
    inputs = json.loads((DATA / "smollm2_ids.json").read_text(encoding="utf-8"))
    windows = np.array(list(inputs["windows"].values()))
    reference = log_probs(load(arguments.gguf), windows)
    other = ir_log_probs(arguments.directory, windows, properties)
    print(f"openvino {ov.__version__}, properties {properties or 'default'}")
    print(f"reference perplexity {perplexity(reference, windows):.4f}")
    print(f"IR perplexity {perplexity(other, windows):.4f}")
    print(f"mean KL(reference || IR) {full_kl(reference, other):.5f}")
    agree = (reference.argmax(-1) == other.argmax(-1)).float().mean()
    print(f"same top token at {agree:.3f} of the positions")


if __name__ == "__main__":
    main()
