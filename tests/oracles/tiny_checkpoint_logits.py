"""What transformers computes for tiny checkpoints of every architecture that can be exported.

For each: its config, the names and shapes of its tensors as published checkpoints have them, the
seed of its weights, prompts, float32 logits and greedy tokens (tests/data/tiny_checkpoints.json,
.npz). Seeds are searched until no argmax is a near tie and every feature of the config matters.

    PYTHONPATH=tests python tests/oracles/tiny_checkpoint_logits.py [--only llama gpt2]
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from tiny_checkpoint_configs import CONFIGS, Case
from tiny_checkpoints import DATA, Record, write_checkpoint, write_json
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

NEW_TOKENS = 24
PROMPT_LENGTHS = (5, 12, 33)
MIN_MARGIN = 0.003  # between the two highest logits, where an export may be off by 1e-4
MIN_SHIFT = 0.02  # of some logit, by whatever must matter
MAX_SEED = 3000


def load(folder: Path, case: Case) -> PreTrainedModel:
    """The model of a folder, checked to have taken all of its tensors."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation=case.attention,
        output_loading_info=True,
    )
    wrong = {key: value for key, value in info.items() if value and key != "error_msgs"}
    assert not wrong, wrong
    return model.eval().float()  # MXFP4 is dequantized to bfloat16


def tensor_shapes(case: Case) -> dict[str, list[int]]:
    """Names and shapes as transformers saves them, changed to what is published."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = {key: value for key, value in case.config.items() if "quantization" not in key}
        (folder / "config.json").write_text(json.dumps(plain))
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder)
        with safe_open(folder / "model.safetensors", "pt") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    return case.publish(shapes)


def last_logits(model: PreTrainedModel, prompt: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0, -1].numpy()


def generate(model: PreTrainedModel, prompt: list[int]) -> tuple[list[int], float]:
    """Greedy tokens and the smallest gap between the two highest logits on the way."""
    result = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    top = torch.stack(result.logits)[:, 0].topk(2).values
    tokens = result.sequences[0, len(prompt) :].tolist()
    return tokens, float((top[:, 0] - top[:, 1]).min())


def matters(folder: Path, case: Case, model: PreTrainedModel, prompts: list[list[int]]) -> bool:
    """True if the last logits change with the first token of the long prompt, and with features."""
    base = [last_logits(model, prompt) for prompt in prompts]
    if case.context_reaches:
        changed = [4 + (prompts[-1][0] - 3) % 300, *prompts[-1][1:]]
        if np.abs(last_logits(model, changed) - base[-1]).max() < MIN_SHIFT:
            return False
    for key, value in case.features.items():
        write_json(folder / "config.json", case.config | {key: value})
        other = load(folder, case)
        rows = [last_logits(other, prompt) for prompt in prompts]
        shift = max(np.abs(row - old).max() for row, old in zip(rows, base, strict=True))
        if shift < MIN_SHIFT:
            if shift == 0:
                raise SystemExit(f"{key}={value} changes nothing")
            return False
    return True


def search(name: str, case: Case) -> tuple[Record, dict[str, Any], np.ndarray]:
    """The first seed whose record is robust: the record, notes on it, its logits."""
    shapes = tensor_shapes(case)
    lengths = case.prompt_lengths or PROMPT_LENGTHS
    for seed in range(MAX_SEED):
        generator = np.random.default_rng(seed)
        prompts = [generator.integers(4, 320, size).tolist() for size in lengths]
        record = Record(case.config, shapes, seed, prompts, [])
        with tempfile.TemporaryDirectory() as folder:
            path = write_checkpoint(Path(folder), record)
            model = load(path, case)
            margins = []
            for prompt in prompts:
                tokens, margin = generate(model, prompt)
                is_good = len(tokens) == NEW_TOKENS and min(tokens) > 3 and margin > MIN_MARGIN
                if not is_good or len(set(tokens)) < case.min_distinct:
                    break
                record.tokens.append(tokens)
                margins.append(margin)
            if len(margins) < len(prompts) or not matters(path, case, model, prompts):
                continue
            with torch.no_grad():
                rows = model(torch.tensor(prompts[:1])).logits[0].numpy()
            last = [last_logits(model, prompt) for prompt in prompts[1:]]
        notes = {"min_margin": round(min(margins), 4), "transformers": transformers.__version__}
        return record, notes, np.stack([*rows, *last]).astype(np.float32)
    raise SystemExit(f"{name}: no robust seed below {MAX_SEED}")


def save(name: str, record: Record, notes: dict[str, Any], logits: np.ndarray) -> None:
    """Put a record among the others."""
    known = json.loads(DATA.read_text()) if DATA.exists() else {}
    arrays = dict(np.load(DATA.with_suffix(".npz"))) if DATA.exists() else {}
    fields = {field: getattr(record, field) for field in Record.__dataclass_fields__}
    known[name], arrays[name] = fields | notes, logits
    order = [key for key in CONFIGS if key in known]
    lines = (f"{json.dumps(key)}: {json.dumps(known[key])}" for key in order)
    DATA.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    np.savez_compressed(DATA.with_suffix(".npz"), **{key: arrays[key] for key in order})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(CONFIGS), default=list(CONFIGS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in arguments.only:
        print(name, end=" ", flush=True)
        record, notes, logits = search(name, CONFIGS[name])
        save(name, record, notes, logits)
        print(record.seed, notes["min_margin"], record.tokens[2], flush=True)


if __name__ == "__main__":
    main()
