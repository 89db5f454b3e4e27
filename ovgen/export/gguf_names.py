"""What transformers calls the tensors of a GGUF file, for each of GGUF's architectures.

GGUF names a tensor ``blk.N.PART.weight`` inside of block N; see constants.py in llama.cpp.
"""

from __future__ import annotations

import re

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
EXPERT = "{}"

# Outside of the blocks.
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_GPT2_OUTER = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
}
_BLOOM_OUTER = {
    "token_embd": "transformer.word_embeddings",
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f",
}
_OUTERS = {
    "bloom": _BLOOM_OUTER,
    "falcon": _BLOOM_OUTER,
    "gpt2": _GPT2_OUTER,
    "gptneox": {
        "token_embd": "gpt_neox.embed_in",
        "output_norm": "gpt_neox.final_layer_norm",
        "output": "embed_out",
    },
    "mpt": {"token_embd": "transformer.wte", "output_norm": "transformer.norm_f"},
    "phi2": {"output_norm": "model.final_layernorm"},
}
# Inside of one, whose name is PREFIX.N.
_PREFIX = "model.layers"
_PREFIXES = {
    "bloom": "transformer.h",
    "falcon": "transformer.h",
    "gpt2": "transformer.h",
    "gptneox": "gpt_neox.layers",
    "mpt": "transformer.blocks",
}
_LLAMA = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA2 = _LLAMA | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OLMO2 = _LLAMA | {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GLM4 = _LLAMA | {
    "post_attention_norm": "post_self_attn_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
    "ffn_up": "mlp.gate_up_proj",
}
_PHI3 = _LLAMA | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_STABLELM = _LLAMA | {
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
}
_PHI2 = _LLAMA | {
    "attn_output": "self_attn.dense",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_STARCODER2 = _LLAMA | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
# The experts' matrices are in one tensor; EXPERT is for their numbers.
_MIXTRAL = _LLAMA | {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}
_QWEN3_MOE = _LLAMA | {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_GPT_OSS = _LLAMA | {
    "attn_sinks.weight": "self_attn.sinks",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
}
_GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_BLOOM = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_FALCON = _BLOOM | {"attn_norm_2": "ln_attn"}  # by whose presence attn_norm is ln_mlp
_GPT_NEOX = _BLOOM | {
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
}
_MPT = {
    "attn_norm": "norm_1",
    "attn_qkv": "attn.Wqkv",
    "attn_output": "attn.out_proj",
    "ffn_norm": "norm_2",
    "ffn_up": "ffn.up_proj",
    "ffn_down": "ffn.down_proj",
}
_BLOCKS = {
    "bloom": _BLOOM,
    "cohere2": _LLAMA,
    "command-r": _LLAMA,
    "falcon": _FALCON,
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA2,
    "glm4": _GLM4,
    "granite": _LLAMA,
    "gpt-oss": _GPT_OSS,
    "gpt2": _GPT2,
    "gptneox": _GPT_NEOX,
    "llama": _LLAMA,
    "mixtral": _MIXTRAL,
    "mpt": _MPT,
    "olmo2": _OLMO2,
    "phi2": _PHI2,
    "phi3": _PHI3,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3moe": _QWEN3_MOE,
    "smollm3": _LLAMA,
    "starcoder2": _STARCODER2,
    "stablelm": _STABLELM,
}


def transformers_name(family: str, name: str) -> str | None:
    """transformers' name of a tensor; None if the family is not known to have it."""
    blocks = _BLOCKS[family]
    if found := _BLOCK.fullmatch(name):
        number, part, kind = found.groups()
        prefix = f"{_PREFIXES.get(family, _PREFIX)}.{number}"
        if whole := blocks.get(f"{part}.{kind}"):
            return f"{prefix}.{whole}"
        return f"{prefix}.{blocks[part]}.{kind}" if part in blocks else None
    outer = _OUTER | _OUTERS.get(family, {})
    part, _, kind = name.rpartition(".")
    return f"{outer[part]}.{kind}" if part in outer else None
