"""transformers' slopes of ALiBi, of BLOOM and of MPT: tests/data/alibi_slopes.json.

python tests/oracles/alibi_slopes.py
"""

import json
from pathlib import Path

import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

TARGET = Path(__file__).parents[1] / "data" / "alibi_slopes.json"
HEADS = (1, 2, 3, 6, 8, 12, 16, 25, 64, 71, 112)


def main() -> None:
    mask = torch.ones(1, 2)
    slopes = {
        "bloom": {
            heads: build_alibi_tensor(mask, heads, torch.float32)[:, 0, 1].tolist()
            for heads in HEADS
        },
        "mpt": {heads: (-build_mpt_alibi_tensor(heads, 2)[:, 0, 0]).tolist() for heads in HEADS},
        "mpt_4": {
            heads: (-build_mpt_alibi_tensor(heads, 2, 4)[:, 0, 0]).tolist() for heads in HEADS
        },
    }
    TARGET.write_text(json.dumps(slopes) + "\n")


if __name__ == "__main__":
    main()
