"""Records in tests/data/rope_frequencies.json the rotary frequencies that transformers computes.

    python tests/oracles/rope_frequencies.py

needs torch and transformers 5.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 4096}
LONG = {
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.1, 3.8],
    "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 30.0, 32.0],
}
LENGTH = {"original_max_position_embeddings": 1024}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **LENGTH}
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "partial": {"rope_type": "default", "partial_rotary_factor": 0.5},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "yarn": {"rope_type": "yarn", "factor": 4.0, **LENGTH},
    "yarn_own": {
        "rope_type": "yarn", "factor": 16.0, "beta_fast": 20.0, "beta_slow": 2.0,
        "attention_factor": 1.5, **LENGTH,
    },
    "yarn_mscale": {
        "rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 0.9, **LENGTH,
    },
    "yarn_untruncated": {"rope_type": "yarn", "factor": 32.0, "truncate": False, **LENGTH},
    "longrope": {"rope_type": "longrope", **LONG, **LENGTH},
    "longrope_factor": {"rope_type": "longrope", "factor": 8.0, **LONG, **LENGTH},
    "longrope_attention": {"rope_type": "longrope", "attention_factor": 1.25, **LONG, **LENGTH},
}  # fmt: skip


def record(parameters: dict[str, Any]) -> dict[str, Any]:
    """The config, and what is computed for it."""
    parameters = {"rope_theta": 50000.0, **parameters}
    config = LlamaConfig(**SIZES, rope_parameters=dict(parameters))
    if parameters["rope_type"] == "default":
        compute = LlamaRotaryEmbedding.compute_default_rope_parameters
        if parameters.get("partial_rotary_factor"):
            from transformers.models.stablelm.modeling_stablelm import StableLmRotaryEmbedding

            compute = StableLmRotaryEmbedding.compute_default_rope_parameters
    else:
        compute = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    frequencies, factor = compute(config, "cpu")
    found = {
        "config": {**SIZES, "rope_parameters": parameters},
        "inverse_frequencies": frequencies.tolist(),
        "attention_factor": factor,
    }
    if parameters["rope_type"] == "longrope":
        found["long"] = compute(config, "cpu", seq_len=1025)[0].tolist()
    return found


def main() -> None:
    """Write the records."""
    path = Path(__file__).parents[1] / "data" / "rope_frequencies.json"
    lines = (f"{json.dumps(name)}: {json.dumps(record(c))}" for name, c in CONFIGS.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
