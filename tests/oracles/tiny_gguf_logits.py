"""What transformers computes for the tiny GGUF files: tests/data/tiny_gguf_logits.npz.

The weights are dequantized with the gguf package and put into a LlamaForCausalLM by hand.
Run in the oracle environment: PYTHONPATH=tests python tests/oracles/tiny_gguf_logits.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from tiny_gguf import (
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    PROMPT,
    VARIANTS,
    VOCAB,
    Variant,
    write_tiny_gguf,
)
from transformers import LlamaConfig, LlamaForCausalLM

TARGET = Path(__file__).parents[1] / "data" / "tiny_gguf_logits.npz"
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def reference_logits(path: Path, variant: Variant) -> np.ndarray:
    """Logits [tokens, vocab] of the prompt in float32."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if variant.rope_scaling is not None:
        rope |= {"rope_type": "linear", "factor": variant.rope_scaling}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            rms_norm_eps=1e-5,
            max_position_embeddings=128,
            rope_parameters=rope,
            attention_bias=variant.has_bias,
            tie_word_embeddings=variant.is_tied,
        )
    ).float()
    state = {}
    for tensor in GGUFReader(path).tensors:
        values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))
        if tensor.name == "rope_freqs.weight":
            model.model.rotary_emb.inv_freq /= values
            continue
        *block, name, kind = tensor.name.split(".")
        if name in ("attn_q", "attn_k"):
            heads = HEADS if name == "attn_q" else KV_HEADS
            pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        prefix = f"model.layers.{block[1]}." if block else ""
        state[f"{prefix}{NAMES[name]}.{kind}"] = values
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    with torch.no_grad():
        return model.eval()(torch.tensor([PROMPT])).logits[0].numpy()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        logits = {
            name: reference_logits(write_tiny_gguf(Path(folder) / f"{name}.gguf", variant), variant)
            for name, variant in VARIANTS.items()
        }
    for name, values in logits.items():
        print(f"{name:12} std {values.std():.3f}")
    np.savez_compressed(TARGET, **logits)


if __name__ == "__main__":
    main()
