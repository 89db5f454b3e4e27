"""Records in tests/data/gemma3_reference.* what transformers computes from gemma-3-270m's GGUF.

    python tests/oracles/gemma3_reference.py MODEL.gguf PYTHON

with gguf, torch and transformers installed, and llama-cpp-python in that other PYTHON, which makes
the prompts' tokens. The weights are the file's, dequantized by gguf.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

DATA = Path(__file__).parents[1] / "data"
PROMPTS = ("The capital of France is", "def fibonacci(n):\n", "Once upon a time there was a")
NUM_TOKENS, LENGTH, STEP, NUM_KEPT = 32, 700, 20, 256
BLOCK = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def load(path: str) -> Gemma3ForCausalLM:
    """The model as google/gemma-3-270m's config has it, with the file's weights."""
    config = Gemma3TextConfig(
        vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18,
        num_attention_heads=4, num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256,
        sliding_window=512, max_position_embeddings=32768, rms_norm_eps=1e-6,
    )  # fmt: skip
    weights = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        parts = tensor.name.split(".")
        name = f"model.layers.{parts[1]}.{BLOCK[parts[2]]}" if len(parts) == 4 else OUTER[parts[0]]
        weights[f"{name}.weight"] = torch.from_numpy(values - ("norm" in tensor.name))
    model = Gemma3ForCausalLM(config).eval()
    missing = model.load_state_dict(weights, strict=False)
    assert missing.missing_keys == ["lm_head.weight"]  # it is tied
    assert not missing.unexpected_keys
    return model


def tokenize(path: str, python: str, texts: list[str]) -> list[list[int]]:
    """Their tokens by llama.cpp, with bos."""
    code = (
        "import json, sys; from llama_cpp import Llama;"
        "model = Llama(sys.argv[1], vocab_only=True, verbose=False);"
        "print(json.dumps([model.tokenize(t.encode()) for t in json.load(sys.stdin)]))"
    )
    command = [python, "-c", code, path]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True)
    found: list[list[int]] = json.loads(done.stdout)
    return found


def main() -> None:
    """Write the records."""
    path, python = sys.argv[1:]
    text = "".join((DATA / "corpus" / f"{name}.txt").read_text() for name in ("harbour", "alice"))
    *prompts, long = tokenize(path, python, [*PROMPTS, text])
    long = long[:LENGTH]
    model = load(path)
    greedy = []
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            tokens = model.generate(ids, max_new_tokens=NUM_TOKENS, do_sample=False)
            greedy.append(tokens[0, len(prompt) :].tolist())
        logits = model(torch.tensor([long])).logits[0, STEP - 1 :: STEP]
        best = torch.log_softmax(logits.double(), -1).topk(NUM_KEPT)
    record = {"texts": PROMPTS, "prompts": prompts, "greedy": greedy, "long": long, "step": STEP}
    (DATA / "gemma3_reference.json").write_text(json.dumps(record) + "\n")
    np.savez_compressed(
        DATA / "gemma3_reference.npz",
        ids=best.indices.numpy().astype(np.int32),
        logprobs=best.values.numpy().astype(np.float32),
    )


if __name__ == "__main__":
    main()
