"""The configs of the tiny checkpoints, written as published ones are, and what must matter."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Shapes = dict[str, list[int]]


def _as_saved(shapes: Shapes) -> Shapes:
    return shapes


@dataclass(frozen=True)
class Case:
    """A checkpoint to be recorded.

    Attributes:
        config: the content of config.json.
        features: values of the config that must change some logits when they replace its own.
        publish: from the tensors that transformers saves to those of published checkpoints.
        prompt_lengths: other than the usual ones.
        min_distinct: of the 24 tokens: greedy that collapses to a loop tests little.
        attention: transformers' implementation; where it is wrong in one, the other.
        context_reaches: False where the first token of the long prompt is out of every window.
    """

    config: dict[str, Any]
    features: dict[str, Any] = field(default_factory=dict)
    publish: Callable[[Shapes], Shapes] = _as_saved
    prompt_lengths: tuple[int, ...] = ()
    min_distinct: int = 8
    attention: str = "eager"
    context_reaches: bool = True


COMMON = {"vocab_size": 332, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float32"}
DECODER = COMMON | {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "intermediate_size": 96,
    "tie_word_embeddings": False,
}
GQA = DECODER | {"num_key_value_heads": 2}


def _case(model_class: str, model_type: str, base: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {"architectures": [model_class], "model_type": model_type} | base | values


def llama(**values: Any) -> dict[str, Any]:
    base = GQA | {"hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
    return _case("LlamaForCausalLM", "llama", base, **values)


def _scaled(**rope: Any) -> dict[str, Any]:
    """A llama whose positions are scaled; without the scaling it must compute something else."""
    return llama(rope_scaling=rope)


PLAIN_ROPE = {"rope_scaling": None}

LLAMAS = {
    "llama": Case(llama(), {"rms_norm_eps": 0.05}),
    # As transformers 5 writes it, and without what older configs do not have.
    "llama_tied": Case(
        {key: value for key, value in llama().items() if key not in ("rope_theta", "torch_dtype")}
        | {
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "dtype": "float32",
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    "llama_bias": Case(llama(attention_bias=True, mlp_bias=True)),
    "llama_head_dim": Case(llama(head_dim=32)),
    "llama_llama3_rope": Case(
        _scaled(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
        PLAIN_ROPE,
    ),
    "llama_yarn": Case(
        _scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=64), PLAIN_ROPE
    ),
    "llama_linear_rope": Case(_scaled(type="linear", factor=4.0), PLAIN_ROPE),
    "llama_dynamic_rope": Case(_scaled(type="dynamic", factor=2.0)),
    "mistral": Case(
        _case(
            "MistralForCausalLM",
            "mistral",
            GQA,
            hidden_act="silu",
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            sliding_window=10,
        ),
        {"sliding_window": 512},
        context_reaches=False,
    ),
    "qwen2": Case(_case("Qwen2ForCausalLM", "qwen2", GQA, rope_theta=1e6, rms_norm_eps=1e-6)),
    "qwen2_window": Case(
        _case(
            "Qwen2ForCausalLM",
            "qwen2",
            GQA,
            rope_theta=1e6,
            rms_norm_eps=1e-6,
            use_sliding_window=True,
            sliding_window=10,
            max_window_layers=1,
        ),
        {"use_sliding_window": False},
    ),
    "qwen3": Case(
        _case(
            "Qwen3ForCausalLM",
            "qwen3",
            GQA,
            head_dim=32,
            rope_theta=1e6,
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
        )
    ),
}


def gemma(version: str, **values: Any) -> dict[str, Any]:
    model_type = f"gemma{version}" + ("_text" if version == "3" else "")
    base = GQA | {"head_dim": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}
    base |= {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}
    return _case(f"Gemma{version}ForCausalLM", model_type, base, **values)


LONG_ROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0],
}
PHI3 = GQA | {"hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
PHI3 |= {"pad_token_id": 2, "sliding_window": None}

LLAMA_LIKE = {
    "gemma": Case(gemma("")),
    "gemma2": Case(
        gemma(
            "2",
            query_pre_attn_scalar=24,
            sliding_window=10,
            attn_logit_softcapping=4.0,
            final_logit_softcapping=6.0,
        ),
        {
            "query_pre_attn_scalar": 32,
            "sliding_window": 512,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    "gemma3": Case(
        gemma(
            "3",
            query_pre_attn_scalar=24,
            sliding_window=10,
            layer_types=["sliding_attention", "full_attention"],
            rope_theta=1e6,
            rope_local_base_freq=10000.0,
            rope_scaling=None,
        ),
        {"query_pre_attn_scalar": 32, "sliding_window": 512, "rope_local_base_freq": 100.0},
    ),
    # As gemma-3-1b has it: a pattern instead of types; and a scaled rope on full layers.
    "gemma3_pattern": Case(
        gemma(
            "3",
            query_pre_attn_scalar=32,
            sliding_window=10,
            sliding_window_pattern=2,
            rope_theta=1e6,
            rope_local_base_freq=10000.0,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
        ),
        {"sliding_window_pattern": 1, "rope_scaling": None},
    ),
    "phi3": Case(_case("Phi3ForCausalLM", "phi3", PHI3)),
    "phi3_window": Case(
        _case("Phi3ForCausalLM", "phi3", PHI3, sliding_window=10),
        {"sliding_window": 512},
        context_reaches=False,
    ),
    # The last prompt is longer than the original context, the others are not.
    "phi3_longrope": Case(
        _case(
            "Phi3ForCausalLM",
            "phi3",
            PHI3,
            rope_scaling=LONG_ROPE,
            original_max_position_embeddings=48,
        ),
        {
            "original_max_position_embeddings": 256,
            "rope_scaling": {**LONG_ROPE, "short_factor": LONG_ROPE["long_factor"]},
        },
        prompt_lengths=(5, 12, 60),
    ),
    # Phi-4-mini: half of a head is rotated.
    "phi3_partial": Case(
        _case(
            "Phi3ForCausalLM",
            "phi3",
            PHI3,
            partial_rotary_factor=0.5,
            rope_scaling={key: v[:4] if key != "type" else v for key, v in LONG_ROPE.items()},
            original_max_position_embeddings=48,
            tie_word_embeddings=True,
        ),
        prompt_lengths=(5, 12, 60),
    ),
    "starcoder2": Case(
        _case(
            "Starcoder2ForCausalLM",
            "starcoder2",
            GQA,
            hidden_act="gelu_pytorch_tanh",
            norm_epsilon=1e-5,
            norm_type="layer_norm",
            use_bias=True,
            rope_theta=1e5,
            sliding_window=10,
            tie_word_embeddings=True,
        ),
        {"sliding_window": None},
        context_reaches=False,
    ),
    "stablelm": Case(
        _case(
            "StableLmForCausalLM",
            "stablelm",
            GQA,
            hidden_act="silu",
            layer_norm_eps=1e-5,
            partial_rotary_factor=0.25,
            use_qkv_bias=True,
            rope_theta=10000,
        )
    ),
    # StableLM 2 12B.
    "stablelm_parallel": Case(
        _case(
            "StableLmForCausalLM",
            "stablelm",
            GQA,
            hidden_act="silu",
            layer_norm_eps=1e-5,
            partial_rotary_factor=0.25,
            qk_layernorm=True,
            use_parallel_residual=True,
            use_qkv_bias=False,
        )
    ),
    "olmo2": Case(
        _case(
            "Olmo2ForCausalLM",
            "olmo2",
            GQA,
            attention_bias=False,
            hidden_act="silu",
            rms_norm_eps=1e-6,
            rope_theta=500000,
        )
    ),
    "granite": Case(
        _case(
            "GraniteForCausalLM",
            "granite",
            GQA,
            hidden_act="silu",
            rms_norm_eps=1e-5,
            attention_multiplier=0.125,
            embedding_multiplier=3.0,
            logits_scaling=0.5,
            residual_multiplier=0.5,
            tie_word_embeddings=True,
            rope_theta=10000,
        ),
        {
            "attention_multiplier": 0.25,
            "embedding_multiplier": 1.0,
            "logits_scaling": 1.0,
            "residual_multiplier": 1.0,
        },
    ),
    # The second layer of two has no positions.
    "smollm3": Case(
        _case(
            "SmolLM3ForCausalLM",
            "smollm3",
            GQA,
            hidden_act="silu",
            rms_norm_eps=1e-6,
            no_rope_layers=[1, 0],
            no_rope_layer_interval=2,
            rope_theta=5000000.0,
            tie_word_embeddings=True,
            pad_token_id=2,
            use_sliding_window=False,
            sliding_window=None,
        ),
        {"no_rope_layers": [1, 1]},
    ),
    "cohere": Case(
        _case(
            "CohereForCausalLM",
            "cohere",
            GQA,
            hidden_act="silu",
            layer_norm_eps=1e-5,
            logit_scale=2.0,
            use_qk_norm=False,
            rope_theta=10000.0,
            tie_word_embeddings=True,
            pad_token_id=2,
        ),
        {"logit_scale": 1.0},
    ),
    # Command R+.
    "cohere_qk_norm": Case(
        _case(
            "CohereForCausalLM",
            "cohere",
            GQA,
            hidden_act="silu",
            layer_norm_eps=1e-5,
            logit_scale=3.0,
            use_qk_norm=True,
            rope_theta=10000.0,
            tie_word_embeddings=True,
            pad_token_id=2,
        )
    ),
    # Three layers of four slide, and only they rotate.
    "cohere2": Case(
        _case(
            "Cohere2ForCausalLM",
            "cohere2",
            GQA,
            head_dim=32,
            num_hidden_layers=4,
            hidden_act="silu",
            layer_norm_eps=1e-5,
            logit_scale=2.0,
            rope_theta=50000.0,
            sliding_window=10,
            sliding_window_pattern=4,
            tie_word_embeddings=True,
            pad_token_id=2,
        ),
        {"logit_scale": 1.0, "sliding_window": 512, "sliding_window_pattern": 2},
    ),
    "glm": Case(
        _case(
            "GlmForCausalLM",
            "glm",
            GQA,
            head_dim=32,
            hidden_act="silu",
            attention_bias=True,
            partial_rotary_factor=0.5,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            pad_token_id=2,
        ),
        {"partial_rotary_factor": 1.0},
    ),
    "glm4": Case(
        _case(
            "Glm4ForCausalLM",
            "glm4",
            GQA,
            head_dim=32,
            hidden_act="silu",
            attention_bias=True,
            partial_rotary_factor=0.5,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            pad_token_id=2,
        ),
        {"partial_rotary_factor": 1.0},
    ),
}


def _without(*prefixes: str) -> Callable[[Shapes], Shapes]:
    """Names without the base model's prefix, as the first checkpoints of a family have them."""

    def publish(shapes: Shapes) -> Shapes:
        pattern = re.compile("|".join(f"^{re.escape(prefix)}" for prefix in prefixes))
        return {pattern.sub("", name): shape for name, shape in shapes.items()}

    return publish


def _with_masks(shapes: Shapes) -> Shapes:
    """GPT-2's file holds the causal masks too."""
    shapes = _without("transformer.")(shapes)
    return shapes | {f"h.{layer}.attn.bias": [1, 1, 256, 256] for layer in range(2)}


def _with_buffers(shapes: Shapes) -> Shapes:
    """As Pythia's files."""
    for layer in range(2):
        name = f"gpt_neox.layers.{layer}.attention"
        shapes |= {
            f"{name}.bias": [1, 1, 256, 256],
            f"{name}.masked_bias": [],
            f"{name}.rotary_emb.inv_freq": [2],
        }
    return shapes


GPT2 = COMMON | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_ctx": 256}
GPT2 |= {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
NEOX = DECODER | {
    "intermediate_size": 128,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
}
OPT = {key: value for key, value in DECODER.items() if key != "intermediate_size"}
OPT |= {"ffn_dim": 96, "word_embed_proj_dim": 64, "activation_function": "relu"}
OPT |= {"do_layer_norm_before": True, "pad_token_id": 2, "tie_word_embeddings": True}
MPT = COMMON | {"d_model": 64, "n_layers": 2, "n_heads": 4, "expansion_ratio": 4}
MPT |= {"max_seq_len": 256, "no_bias": True, "learned_pos_emb": True, "tie_word_embeddings": True}
MPT_ATTENTION = {
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_impl": "torch",
    "attn_pdrop": 0,
    "attn_type": "multihead_attention",
    "attn_uses_sequence_id": False,
    "clip_qkv": None,
    "prefix_lm": False,
    "qk_ln": False,
    "softmax_scale": None,
}
FALCON = COMMON | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FALCON |= {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}

OLDER = {
    "phi": Case(
        _case(
            "PhiForCausalLM",
            "phi",
            DECODER,
            hidden_act="gelu_new",
            layer_norm_eps=1e-5,
            partial_rotary_factor=0.5,
            qk_layernorm=False,
            rope_theta=10000.0,
        ),
        {"partial_rotary_factor": 1.0},
    ),
    "phi_qk_layernorm": Case(
        _case(
            "PhiForCausalLM",
            "phi",
            GQA,
            hidden_act="gelu_new",
            layer_norm_eps=1e-5,
            partial_rotary_factor=0.5,
            qk_layernorm=True,
        )
    ),
    "gpt2": Case(_case("GPT2LMHeadModel", "gpt2", GPT2), publish=_with_masks),
    "gpt2_scaled": Case(
        _case(
            "GPT2LMHeadModel",
            "gpt2",
            GPT2,
            scale_attn_by_inverse_layer_idx=True,
            n_inner=96,
            activation_function="gelu",
            tie_word_embeddings=False,
        ),
        {"scale_attn_by_inverse_layer_idx": False},
    ),
    "gpt_neox": Case(
        _case("GPTNeoXForCausalLM", "gpt_neox", NEOX, use_parallel_residual=True),
        publish=_with_buffers,
    ),
    "gpt_neox_sequential": Case(
        _case("GPTNeoXForCausalLM", "gpt_neox", NEOX, use_parallel_residual=False, rotary_pct=1.0),
        {"rotary_pct": 0.5},
    ),
    "gptj": Case(
        _case("GPTJForCausalLM", "gptj", GPT2, rotary_dim=8, tie_word_embeddings=False),
        {"rotary_dim": 16},
    ),
    "opt": Case(_case("OPTForCausalLM", "opt", OPT)),
    # OPT 350M: norms after the blocks, embeddings of another size; names without "model.".
    "opt_post_norm": Case(
        _case("OPTForCausalLM", "opt", OPT, do_layer_norm_before=False, word_embed_proj_dim=32),
        publish=_without("model."),
        min_distinct=2,
    ),
    "mpt": Case(
        _case("MPTForCausalLM", "mpt", MPT, attn_config=MPT_ATTENTION),
    ),
    "mpt_clipped": Case(
        _case(
            "MPTForCausalLM",
            "mpt",
            MPT,
            n_heads=3,
            d_model=48,
            attn_config={**MPT_ATTENTION, "clip_qkv": 2.0, "softmax_scale": 0.5},
        ),
        {"attn_config": {**MPT_ATTENTION, "softmax_scale": 0.5}},
    ),
    "bloom": Case(
        _case(
            "BloomForCausalLM",
            "bloom",
            COMMON,
            hidden_size=48,
            n_layer=2,
            n_head=6,
            layer_norm_epsilon=1e-5,
            pad_token_id=2,
            apply_residual_connection_post_layernorm=False,
        ),
        {"apply_residual_connection_post_layernorm": True},
        publish=_without("transformer."),
        min_distinct=5,
    ),
    # Falcon 7B: one key and value head, attention beside the feed-forward network.
    "falcon": Case(
        _case(
            "FalconForCausalLM",
            "falcon",
            FALCON,
            alibi=False,
            bias=False,
            multi_query=True,
            parallel_attn=True,
            new_decoder_architecture=False,
        )
    ),
    # Falcon 40B.
    "falcon_new": Case(
        _case(
            "FalconForCausalLM",
            "falcon",
            FALCON,
            alibi=False,
            bias=False,
            new_decoder_architecture=True,
            num_kv_heads=2,
        )
    ),
    # Falcon 11B: one norm for both.
    "falcon_one_norm": Case(
        _case(
            "FalconForCausalLM",
            "falcon",
            FALCON,
            alibi=False,
            bias=False,
            new_decoder_architecture=True,
            num_kv_heads=2,
            num_ln_in_parallel_attn=1,
            ffn_hidden_size=96,
            tie_word_embeddings=False,
        )
    ),
    # Falcon RW 1B.
    "falcon_alibi": Case(
        _case(
            "FalconForCausalLM",
            "falcon",
            FALCON,
            alibi=True,
            bias=True,
            multi_query=False,
            parallel_attn=False,
            new_decoder_architecture=False,
        ),
        attention="sdpa",  # eager adds the biases twice
    ),
}

MOE = GQA | {"hidden_act": "silu", "rms_norm_eps": 1e-5}
QWEN3_MOE = MOE | {
    "head_dim": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "rope_theta": 1e6,
}
GPT_OSS = MOE | {
    "head_dim": 32,
    "attention_bias": True,
    "intermediate_size": 32,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 10,
    "swiglu_limit": 7.0,
    "rope_theta": 150000,
    "pad_token_id": 2,
}
GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
    "truncate": False,
}


MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}


def _mxfp4(shapes: Shapes) -> Shapes:
    """Experts as blocks of 32 4-bit floats: rows are the outputs, and a byte holds two."""
    published = {}
    for name, shape in shapes.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, cols, rows = shape
            published[f"{name}_blocks"] = [experts, rows, cols // 32, 16]
            published[f"{name}_scales"] = [experts, rows, cols // 32]
        else:
            published[name] = shape
    return published


EXPERTS = {
    "mixtral": Case(
        _case(
            "MixtralForCausalLM",
            "mixtral",
            MOE,
            intermediate_size=48,
            num_local_experts=4,
            num_experts_per_tok=2,
            rope_theta=1e6,
            sliding_window=None,
        ),
        {"num_experts_per_tok": 3},
    ),
    "mixtral_window": Case(
        _case(
            "MixtralForCausalLM",
            "mixtral",
            MOE,
            intermediate_size=48,
            num_local_experts=8,
            num_experts_per_tok=2,
            sliding_window=10,
        ),
        {"sliding_window": None},
        context_reaches=False,
    ),
    "qwen3_moe": Case(
        _case("Qwen3MoeForCausalLM", "qwen3_moe", QWEN3_MOE, norm_topk_prob=True),
        {"norm_topk_prob": False, "num_experts_per_tok": 2},
    ),
    # A dense layer, and probabilities that do not sum to one.
    "qwen3_moe_mixed": Case(
        _case(
            "Qwen3MoeForCausalLM",
            "qwen3_moe",
            QWEN3_MOE,
            norm_topk_prob=False,
            mlp_only_layers=[0],
            tie_word_embeddings=True,
        )
    ),
    "gpt_oss": Case(
        _case("GptOssForCausalLM", "gpt_oss", GPT_OSS, rope_scaling=GPT_OSS_ROPE),
        {"sliding_window": 512, "num_experts_per_tok": 3},
    ),
    # As published: four-bit floats.
    "gpt_oss_mxfp4": Case(
        _case(
            "GptOssForCausalLM",
            "gpt_oss",
            GPT_OSS,
            rope_scaling=GPT_OSS_ROPE,
            quantization_config=MXFP4,
        ),
        publish=_mxfp4,
    ),
}

CONFIGS: dict[str, Case] = {**LLAMAS, **LLAMA_LIKE, **OLDER, **EXPERTS}
