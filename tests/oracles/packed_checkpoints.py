"""Tiny quantized llamas and what transformers computes with their dequantized weights.

Writes tests/fixtures/packed/NAME (config.json, model.safetensors) and tests/data/packed_llama.npz:
"NAME/TENSOR" (the float32 value of each quantized weight) and "NAME/logits" [tokens, vocab].
The codes are packed here one by one, by what the formats' publications say, and dequantized from
the codes before they were packed; the fp8 values are those of transformers' own dequantization.
"f8_e4m3" and "f8_e5m2" [256] are torch's values of all codes; "mxfp4/..." are an expert's packed
tensors and transformers' values of them.
Run in the oracle environment: python tests/oracles/packed_checkpoints.py
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, LlamaConfig, LlamaForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

# transformers' module for FP8 imports triton, which its dequantization does not use.
sys.modules.setdefault("triton", MagicMock())
sys.modules.setdefault("triton.language", MagicMock())

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "fixtures" / "packed"
TARGET = ROOT / "data" / "packed_llama.npz"
PROMPT = [1, 17, 42, 99, 5, 63, 120, 8]
GROUP = 32
Layer = Callable[[torch.Tensor], tuple[dict[str, torch.Tensor], torch.Tensor]]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # output of the word's n-th nibble


def tiny_llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():  # not the whole model: its rotary frequencies stay float32
        parameter.data = parameter.data.half().float()
    return model


def pack_bits(codes: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Pack [count, n] along the first axis into 32-bit words [count * bits / 32, n]."""
    count, width = codes.shape
    words = [[0] * width for _ in range(count * bits // 32)]
    per_word = 32 // bits
    for i in range(count):
        for j in range(width):
            code = int(codes[i, j])
            if order is not None:
                words[i // per_word][j] |= code << bits * order.index(i % per_word)
                continue
            for bit in range(bits):  # three-bit codes run on over the border of a word
                word, shift = divmod(i * bits + bit, 32)
                words[word][j] |= (code >> bit & 1) << shift
    return torch.from_numpy(np.array(words, np.uint32).astype(np.int32))


def quantize(
    weight: torch.Tensor, bits: int, groups: torch.Tensor, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [in, out], float16 scales and zero points [groups, out] of a weight [out, in]."""
    columns = weight.T
    top = 2**bits - 1
    num_groups = int(groups.max()) + 1
    scales = torch.empty(num_groups, columns.shape[1])
    zeros = torch.empty(num_groups, columns.shape[1], dtype=torch.int64)
    for group in range(num_groups):
        block = columns[groups == group]
        low, high = block.amin(0).clamp(max=0), block.amax(0).clamp(min=0)
        if symmetric:
            bound = torch.maximum(-low, high)
            low, high = -bound, bound
        scales[group] = ((high - low) / top).half().float()
        zeros[group] = (-low / scales[group]).round().clamp(0, top).long()
        if symmetric:
            zeros[group] = (top + 1) // 2
    codes = (columns / scales[groups] + zeros[groups]).round().clamp(0, top).long()
    return codes, scales.half(), zeros


def gptq(bits: int, symmetric: bool, act_order: bool, version: int) -> tuple[dict, Layer]:
    """The config, and a function of a weight to its packed tensors and its value."""
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": GROUP,
        "desc_act": act_order,
        "sym": symmetric,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }

    def layer(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        size = weight.shape[1]
        groups = torch.arange(size) // GROUP
        if act_order:
            groups = groups[torch.randperm(size)]
        codes, scales, zeros = quantize(weight, bits, groups, symmetric)
        if not symmetric and version == 1:
            zeros = zeros.clamp(min=1)  # the first version has no way to say 0
        stored = zeros - 1 if version == 1 else zeros
        tensors = {
            "qweight": pack_bits(codes, bits),
            "qzeros": pack_bits(stored.T, bits).T.contiguous(),
            "scales": scales,
            "g_idx": groups.int(),
        }
        value = scales.float()[groups] * (codes - zeros[groups])
        return tensors, value.T.contiguous()

    return config, layer


def awq() -> tuple[dict, Layer]:
    config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "version": "gemm",
        "zero_point": True,
    }

    def layer(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        groups = torch.arange(weight.shape[1]) // GROUP
        codes, scales, zeros = quantize(weight, 4, groups, False)
        tensors = {
            "qweight": pack_bits(codes.T, 4, AWQ_ORDER).T.contiguous(),
            "qzeros": pack_bits(zeros.T, 4, AWQ_ORDER).T.contiguous(),
            "scales": scales,
        }
        value = scales.float()[groups] * (codes - zeros[groups])
        return tensors, value.T.contiguous()

    return config, layer


KINDS = {
    "gptq": gptq(4, symmetric=True, act_order=False, version=1),
    "gptq_act_order": gptq(4, symmetric=False, act_order=True, version=1),
    "gptq_v2": gptq(4, symmetric=False, act_order=False, version=2),
    "gptq_3bit": gptq(3, symmetric=False, act_order=False, version=1),
    "awq": awq(),
}


def write(folder: Path, model: LlamaForCausalLM, config: dict, tensors: dict) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    content = model.config.to_dict() | {"quantization_config": config, "dtype": "float16"}
    content["architectures"] = ["LlamaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def logits(model: LlamaForCausalLM) -> np.ndarray:
    with torch.no_grad():
        return model.float()(torch.tensor([PROMPT])).logits[0].numpy()


def packed(name: str, seed: int) -> dict[str, np.ndarray]:
    model = tiny_llama(seed)
    config, layer = KINDS[name]
    tensors, records = {}, {}
    for module_name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module_name != "lm_head":
            parts, value = layer(module.weight.data)
            tensors |= {f"{module_name}.{part}": tensor for part, tensor in parts.items()}
            module.weight.data = value
            records[f"{name}/{module_name}.weight"] = value.numpy()
    for key, value in model.state_dict().items():
        if key.removesuffix(".weight") + ".qweight" not in tensors:
            tensors[key] = value.half()
    write(FIXTURES / name, model, config, tensors)
    return {**records, f"{name}/logits": logits(model)}


def fp8(name: str, block: list[int]) -> dict[str, np.ndarray]:
    model = tiny_llama(9)
    tensors = {}
    for key, value in model.state_dict().items():
        if value.ndim < 2 or key.startswith(("lm_head", "model.embed")):
            tensors[key] = value.half()
            continue
        rows, cols = value.shape
        blocks = value.reshape(rows // block[0], block[0], cols // block[1], block[1])
        scales = blocks.abs().amax((1, 3)) / 448
        quants = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn).reshape(rows, cols)
        tensors |= {key: quants, f"{key}_scale_inv": scales}
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}
    write(FIXTURES / name, model, config, tensors)
    with tempfile.TemporaryDirectory() as folder:
        loaded = AutoModelForCausalLM.from_pretrained(
            shutil.copytree(FIXTURES / name, folder, dirs_exist_ok=True),
            quantization_config=FineGrainedFP8Config(weight_block_size=block, dequantize=True),
            dtype=torch.float32,
        )
    records = {
        f"{name}/{key}": loaded.state_dict()[key].numpy()
        for key in load_file(FIXTURES / name / "model.safetensors")
        if f"{key}_scale_inv" in tensors
    }
    return {**records, f"{name}/logits": logits(loaded)}


def mxfp4() -> dict[str, np.ndarray]:
    """Random experts [2, 6, 64] and what transformers makes of them, [2, 64, 6]."""
    random = np.random.default_rng(4)
    blocks = random.integers(0, 256, (2, 6, 2, 16), dtype=np.uint8)
    scales = random.integers(100, 140, (2, 6, 2), dtype=np.uint8)
    values = convert_moe_packed_tensors(
        torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32
    )
    return {"mxfp4/blocks": blocks, "mxfp4/scales": scales, "mxfp4/values": values.numpy()}


def main() -> None:
    records: dict[str, np.ndarray] = {}
    for seed, name in enumerate(KINDS):
        records |= packed(name, seed)
    records |= fp8("fp8", [16, 32])
    records |= mxfp4()
    codes = torch.arange(256, dtype=torch.uint8)
    records["f8_e4m3"] = codes.view(torch.float8_e4m3fn).float().numpy()
    records["f8_e5m2"] = codes.view(torch.float8_e5m2).float().numpy()
    np.savez_compressed(TARGET, **records)


if __name__ == "__main__":
    main()
