"""What transformers computes for a tiny checkpoint of the architecture that the README adds.

Its record is as those of tiny_checkpoint_logits.py, with the logits at the end of the first prompt
(tests/data/readme_architecture.json).

    PYTHONPATH=tests python tests/oracles/readme_architecture.py
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from tiny_checkpoint_configs import GQA, Case
from tiny_checkpoint_logits import search

DATA = Path(__file__).parents[1] / "data" / "readme_architecture.json"
ARCEE = {
    "architectures": ["ArceeForCausalLM"],
    "model_type": "arcee",
    "hidden_act": "relu2",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    record, notes, rows = search("arcee", Case(GQA | ARCEE, {"rms_norm_eps": 0.05}))
    last = rows[len(record.prompts[0]) - 1]
    logits = [round(float(value), 6) for value in last]
    DATA.write_text(json.dumps(asdict(record) | notes | {"logits": logits}) + "\n")


if __name__ == "__main__":
    main()
