"""Records what NNCF's rounding makes of one weight in tests/data/nncf_weights.npz.

python tests/oracles/nncf_weights.py
"""

from pathlib import Path

import numpy as np
from nncf.parameters import CompressWeightsMode
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.quantization.algorithms.weight_compression.weight_lowering import (
    float_quantize_dequantize_weight,
    integer_quantize_dequantize_weight,
)
from nncf.tensor import Tensor

OUTPUT = Path(__file__).parents[1] / "data" / "nncf_weights.npz"
SHAPE = (16, 512)


def main() -> None:
    rng = np.random.default_rng(5)
    weight = (rng.standard_t(6, SHAPE) * 0.03 + rng.normal(0, 0.004, (16, 1))).astype(np.float16)
    records = {"weight": weight}
    for mode in ("int8_sym", "int8_asym", "int4_sym", "int4_asym", "nf4"):
        for group in (64, 256):
            config = WeightCompressionConfig(CompressWeightsMode(mode), group_size=-1)
            quantize = integer_quantize_dequantize_weight
            if mode == "nf4":
                quantize = float_quantize_dequantize_weight
            groups = Tensor(weight.astype(np.float32).reshape(-1, group))
            values = quantize(groups, config, reduction_axes=1)
            records[f"{mode}_{group}"] = values.data.reshape(SHAPE).astype(np.float32)
    np.savez_compressed(OUTPUT, **records)
    print(OUTPUT, OUTPUT.stat().st_size)


if __name__ == "__main__":
    main()
