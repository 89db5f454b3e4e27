"""Records what PEFT merges: adapters in tests/data/lora/NAME, weights in tests/data/lora.npz.

python tests/oracles/lora_merge.py
"""

from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

DATA = Path(__file__).parents[1] / "data"
LLAMA = LlamaConfig(
    vocab_size=8,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
)
GPT2 = GPT2Config(vocab_size=8, n_embd=16, n_layer=1, n_head=2, n_positions=8)
CASES = {
    "plain": (LLAMA, {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"]}),
    "rslora": (
        LLAMA,
        {
            "r": 4,
            "lora_alpha": 6,
            "use_rslora": True,
            "target_modules": "all-linear",
            "rank_pattern": {"k_proj": 2, r"layers\.0\.mlp\.up_proj": 5},
            "alpha_pattern": {"v_proj": 9},
        },
    ),
    "dora": (
        LLAMA,
        {"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ["v_proj", "gate_proj"]},
    ),
    "conv1d": (
        GPT2,
        {"r": 2, "lora_alpha": 3, "fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj"]},
    ),
}


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for number, (name, (config, options)) in enumerate(CASES.items()):
        torch.manual_seed(number)
        base = (GPT2LMHeadModel if config is GPT2 else LlamaForCausalLM)(config)
        before = {key: value.clone() for key, value in base.state_dict().items()}
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    factor = 1 + torch.rand_like(parameter)
                    is_length = "magnitude" in key
                    parameter.copy_(parameter * factor if is_length else factor - 1.5)
        folder = DATA / "lora" / name
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        again = (GPT2LMHeadModel if config is GPT2 else LlamaForCausalLM)(config)
        again.load_state_dict(before)
        merged = PeftModel.from_pretrained(again, folder).merge_and_unload().state_dict()
        for key, value in merged.items():
            if not torch.equal(value, before[key]):
                arrays[f"{name}/before/{key}"] = before[key].numpy()
                arrays[f"{name}/after/{key}"] = value.numpy()
    np.savez_compressed(DATA / "lora.npz", **arrays)
    print(len(arrays), (DATA / "lora.npz").stat().st_size)


if __name__ == "__main__":
    main()
