"""What the config of each GGUF architecture has beside the usual sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from ovgen.export.gguf_metadata import Metadata
from ovgen.export.gguf_rope import rope_scaling

Config: TypeAlias = dict[str, Any]
Family: TypeAlias = Callable[[Metadata], Config]


def _llama(metadata: Metadata, model_type: str = "llama") -> Config:
    tensors = metadata.gguf.tensors
    return {
        "model_type": model_type,
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
    }


def _plain(model_type: str) -> Family:
    """A family of which all is in the common part."""
    return lambda metadata: {"model_type": model_type, "hidden_act": "silu"}


def _mixtral(metadata: Metadata) -> Config:
    return {
        "model_type": "mixtral",
        "hidden_act": "silu",
        "num_local_experts": metadata.size("expert_count"),
        "num_experts_per_tok": metadata.size("expert_used_count"),
    }


def _qwen3_moe(metadata: Metadata) -> Config:
    return {
        "model_type": "qwen3_moe",
        "hidden_act": "silu",
        "num_experts": metadata.size("expert_count"),
        "num_experts_per_tok": metadata.size("expert_used_count"),
        "moe_intermediate_size": metadata.size("expert_feed_forward_length"),
        "norm_topk_prob": True,
    }


def _gpt_oss(metadata: Metadata) -> Config:
    scaling = rope_scaling(metadata)
    return {
        "model_type": "gpt_oss",
        "hidden_act": "silu",
        "attention_bias": True,
        "intermediate_size": metadata.size("expert_feed_forward_length"),
        "num_local_experts": metadata.size("expert_count"),
        "num_experts_per_tok": metadata.size("expert_used_count"),
        "sliding_window": metadata.integer("attention.sliding_window"),
        "rope_scaling": None if scaling is None else scaling | {"truncate": False},
    }


def _phi2(metadata: Metadata) -> Config:
    return {"model_type": "phi", "hidden_act": "gelu_new"}


def _starcoder2(metadata: Metadata) -> Config:
    return {
        "model_type": "starcoder2",
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": "blk.0.attn_q.bias" in metadata.gguf.tensors,
    }


def _gpt2(metadata: Metadata) -> Config:
    return {"model_type": "gpt2", "hidden_act": "gelu_new"}


def _gpt_neox(metadata: Metadata) -> Config:
    return {
        "model_type": "gpt_neox",
        "hidden_act": "gelu",
        "use_parallel_residual": metadata.flag("use_parallel_residual"),
    }


def _falcon(metadata: Metadata) -> Config:
    has_two_norms = "blk.0.attn_norm_2.weight" in metadata.gguf.tensors
    kv_heads = metadata.integer("attention.head_count_kv") or 1
    return {
        "model_type": "falcon",
        "bias": "blk.0.attn_qkv.bias" in metadata.gguf.tensors,
        "new_decoder_architecture": has_two_norms or kv_heads > 1,
        "num_ln_in_parallel_attn": 2 if has_two_norms else 1,
        "num_kv_heads": kv_heads,
    }


def _mpt(metadata: Metadata) -> Config:
    hidden, inner = metadata.size("embedding_length"), metadata.size("feed_forward_length")
    bias_max = metadata.number("attention.max_alibi_bias") or 0.0
    return {
        "model_type": "mpt",
        "expansion_ratio": max(1, inner // hidden),
        "attn_config": {
            "alibi": bias_max > 0,
            "alibi_bias_max": bias_max,
            "clip_qkv": metadata.number("attention.clamp_kqv"),
        },
    }


def _gemma(metadata: Metadata) -> Config:
    return {"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh"}


def _gemma2(metadata: Metadata) -> Config:
    # The file does not have the scale of the products: it is known by the number of blocks, of
    # which the model with another one has 46.
    return {
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _query_scalar(metadata, exception=46),
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping"),
        "final_logit_softcapping": metadata.number("final_logit_softcapping"),
        "sliding_window": metadata.integer("attention.sliding_window"),
    }


def _gemma3(metadata: Metadata) -> Config:
    layers = metadata.size("block_count")
    window = metadata.integer("attention.sliding_window")
    slides = [bool(window) and (layer + 1) % 6 != 0 for layer in range(layers)]
    return {
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _query_scalar(metadata, exception=62),
        "final_logit_softcapping": metadata.number("final_logit_softcapping"),
        "sliding_window": window,
        "layer_types": _layer_types(slides),
        "rope_theta": metadata.number("rope.freq_base") or 1000000.0,
        "rope_local_base_freq": metadata.number("rope.freq_base_swa") or 10000.0,
    }


def _query_scalar(metadata: Metadata, exception: int) -> float:
    hidden, heads = metadata.size("embedding_length"), metadata.size("attention.head_count")
    per_head = hidden // heads
    if metadata.size("block_count") == exception:
        return per_head
    return metadata.integer("attention.key_length") or per_head


def _layer_types(slides: list[bool]) -> list[str]:
    return ["sliding_attention" if slide else "full_attention" for slide in slides]


def _phi3(metadata: Metadata) -> Config:
    # 0 for none.
    window = metadata.integer("attention.sliding_window") or None
    return {"model_type": "phi3", "hidden_act": "silu", "sliding_window": window}


def _granite(metadata: Metadata) -> Config:
    hidden, heads = metadata.size("embedding_length"), metadata.size("attention.head_count")
    return _llama(metadata, "granite") | {
        "attention_multiplier": metadata.number("attention.scale") or (hidden // heads) ** -0.5,
        "embedding_multiplier": metadata.number("embedding_scale"),
        "residual_multiplier": metadata.number("residual_scale"),
        "logits_scaling": metadata.number("logit_scale"),
    }


def _stablelm(metadata: Metadata) -> Config:
    tensors = metadata.gguf.tensors
    return {
        "model_type": "stablelm",
        "hidden_act": "silu",
        "use_qkv_bias": "blk.0.attn_q.bias" in tensors,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in tensors,
        # The metadata's own word for it was written wrongly for years.
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors,
    }


def _cohere(metadata: Metadata) -> Config:
    return {
        "model_type": "cohere",
        "hidden_act": "silu",
        "use_qk_norm": "blk.0.attn_q_norm.weight" in metadata.gguf.tensors,
        "logit_scale": metadata.number("logit_scale"),
    }


def _cohere2(metadata: Metadata) -> Config:
    layers = metadata.size("block_count")
    return {
        "model_type": "cohere2",
        "hidden_act": "silu",
        "logit_scale": metadata.number("logit_scale"),
        "sliding_window": metadata.integer("attention.sliding_window"),
        "layer_types": _layer_types([(layer + 1) % 4 != 0 for layer in range(layers)]),
    }


def _glm4(metadata: Metadata) -> Config:
    bias = "blk.0.attn_q.bias" in metadata.gguf.tensors
    return {"model_type": "glm4", "hidden_act": "silu", "attention_bias": bias}


FAMILIES: dict[str, Family] = {
    "bloom": lambda metadata: {"model_type": "bloom"},
    "cohere2": _cohere2,
    "command-r": _cohere,
    "falcon": _falcon,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "glm4": _glm4,
    "gpt-oss": _gpt_oss,
    "gpt2": _gpt2,
    "gptneox": _gpt_neox,
    "granite": _granite,
    "llama": _llama,
    "mixtral": _mixtral,
    "mpt": _mpt,
    "olmo2": _plain("olmo2"),
    "phi2": _phi2,
    "phi3": _phi3,
    "qwen2": _plain("qwen2"),
    "qwen3": _plain("qwen3"),
    "qwen3moe": _qwen3_moe,
    "smollm3": lambda metadata: _llama(metadata, "smollm3"),
    "stablelm": _stablelm,
    "starcoder2": _starcoder2,
}
