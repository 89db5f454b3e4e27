"""Layers as compressed-tensors packs and unpacks them: tests/data/compressed_tensors.npz.

Holds "CASE/PART" for the tensors of a layer, by their names in a checkpoint, and "CASE/value".
Run in the oracle environment, with compressed-tensors in it:
python tests/oracles/compressed_tensors_layers.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

TARGET = Path(__file__).parents[1] / "data" / "compressed_tensors.npz"
SHAPE = (32, 96)
CASES = {
    "int4": {"num_bits": 4, "strategy": "group", "group_size": 32},
    "int4_asym": {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
    "int4_channel": {"num_bits": 4, "strategy": "channel"},
    "int3_asym": {"num_bits": 3, "strategy": "group", "group_size": 32, "symmetric": False},
    "int8_packed": {"num_bits": 8, "strategy": "group", "group_size": 32, "symmetric": False},
    "int8": {"num_bits": 8, "strategy": "channel"},
    "int8_asym": {"num_bits": 8, "strategy": "channel", "symmetric": False},
    "int8_tensor": {"num_bits": 8, "strategy": "tensor"},
    "fp8": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "fp8_block": {
        "num_bits": 8,
        "type": "float",
        "strategy": "block",
        "block_structure": [16, 32],
    },
}


def format_of(name: str) -> str:
    if name.startswith("fp8"):
        return "float-quantized"
    return (
        "int-quantized" if name.startswith("int8") and name != "int8_packed" else "pack-quantized"
    )


def scale_shape(args: QuantizationArgs) -> tuple[int, ...]:
    rows, cols = SHAPE
    if args.strategy == "tensor":
        return (1,)
    if args.strategy == "block":
        return rows // args.block_structure[0], cols // args.block_structure[1]
    return rows, cols // args.group_size if args.group_size else 1


def main() -> None:
    torch.manual_seed(0)
    records = {}
    for name, options in CASES.items():
        args = QuantizationArgs(**options)
        scheme = QuantizationScheme(targets=["Linear"], weights=args, format=format_of(name))
        compressor = BaseCompressor.get_value_from_registry(format_of(name))
        shape = scale_shape(args)
        state = {
            "weight": torch.randn(SHAPE),
            "weight_scale": torch.rand(shape) / 2 ** (args.num_bits - 3) + 0.01,
        }
        if not args.symmetric:
            half = 2 ** (args.num_bits - 1)
            state["weight_zero_point"] = torch.randint(-half, half, shape, dtype=torch.int8)
        packed = compressor.compress(state, scheme)
        value = compressor.decompress(packed, scheme)["weight"]
        for part, tensor in packed.items():
            is_f8 = tensor.dtype == torch.float8_e4m3fn
            records[f"{name}/{part}"] = (tensor.view(torch.uint8) if is_f8 else tensor).numpy()
        records[f"{name}/value"] = value.float().numpy()
    np.savez_compressed(TARGET, **records)


if __name__ == "__main__":
    main()
