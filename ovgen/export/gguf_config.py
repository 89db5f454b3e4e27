"""The metadata of a GGUF file as the config.json that transformers would have."""

from __future__ import annotations

from ovgen.errors import ModelFormatError, UnsupportedModelError
from ovgen.export.gguf import GGUFFile
from ovgen.export.gguf_families import FAMILIES, Config
from ovgen.export.gguf_metadata import Metadata
from ovgen.export.gguf_rope import rope_scaling

# transformers' classes, for whoever reads the config of an IR.
_CLASSES = {
    "bloom": "BloomForCausalLM",
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "falcon": "FalconForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "granite": "GraniteForCausalLM",
    "llama": "LlamaForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "mpt": "MptForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
}


def family_of(gguf: GGUFFile) -> str:
    """The architecture, where GGUF has one name for two.

    Raises:
        UnsupportedModelError: it is not known.
    """
    family = gguf.architecture
    if family == "llama" and gguf.get_int("llama.expert_count", default=0, min=0):
        family = "mixtral"
    if family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedModelError(
            f"{gguf.path}: GGUF's architecture {family!r:.80} cannot be exported; "
            f"supported: {known}"
        )
    return family


def config_of(gguf: GGUFFile) -> Config:
    """The config by transformers' names, without what the file does not say.

    Raises:
        UnsupportedModelError: an architecture, or a variant of one, that is not known.
        ModelFormatError: metadata that is missing or absurd.
    """
    family, metadata = FAMILIES[family_of(gguf)], Metadata(gguf)
    config = _common(metadata) | family(metadata)
    config["architectures"] = [_CLASSES[config["model_type"]]]
    return {key: value for key, value in config.items() if value is not None}


def _common(metadata: Metadata) -> Config:
    gguf = metadata.gguf
    hidden, heads = metadata.size("embedding_length"), metadata.size("attention.head_count")
    if heads > hidden:
        raise ModelFormatError(
            f"{gguf.path}: attention.head_count is {heads}, more than embedding_length, {hidden}"
        )
    head_dim = metadata.integer("attention.key_length") or hidden // heads
    value_dim = metadata.integer("attention.value_length") or head_dim
    if value_dim != head_dim:
        metadata.refuse("attention.value_length", value_dim, f"{head_dim}, as for keys")
    rotary_dim = metadata.integer("rope.dimension_count") or head_dim
    return {
        "vocab_size": len(gguf.get_strings("tokenizer.ggml.tokens")),
        "hidden_size": hidden,
        "intermediate_size": metadata.size("feed_forward_length"),
        "num_hidden_layers": metadata.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer("attention.head_count_kv"),
        "head_dim": head_dim,
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "layer_norm_eps": metadata.number("attention.layer_norm_epsilon"),
        "rope_theta": metadata.number("rope.freq_base") or 10000.0,
        "rope_scaling": rope_scaling(metadata),
        "partial_rotary_factor": None if rotary_dim == head_dim else rotary_dim / head_dim,
        "max_position_embeddings": metadata.size("context_length"),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
    }
