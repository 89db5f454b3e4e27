"""The float32 reference of a llama GGUF: greedy tokens and per-position distributions.

The file is dequantized with the `gguf` package into a transformers LlamaForCausalLM; token ids come
from llama.cpp (smollm2_ids.py). Writes tests/data/smollm2_greedy.json and smollm2_kl.npz.

    python tests/oracles/smollm2_reference.py smollm2.gguf [--report]
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import transformers
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import LlamaConfig, LlamaForCausalLM

DATA = Path(__file__).parents[1] / "data"
NEW_TOKENS = 64
MIN_MARGIN = 2e-3  # below it float noise, not correctness, decides the argmax
TOP = 128
TAIL_SAMPLES = 16
EOS = 2
TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF's interleaved rotary rows back to the two halves that transformers rotates."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if not name.startswith("blk."):
        return {
            "token_embd.weight": "model.embed_tokens.weight",
            "output_norm.weight": "model.norm.weight",
            "output.weight": "lm_head.weight",
        }[name]
    _, layer, tensor, kind = name.split(".")
    return f"model.layers.{layer}.{TENSORS[tensor]}.{kind}"


def load(path: str) -> LlamaForCausalLM:
    """The GGUF as a float32 LlamaForCausalLM with exactly the file's values."""
    reader = GGUFReader(path)

    def value(key: str) -> int | float:
        return reader.fields[f"llama.{key}"].contents()

    heads, kv_heads = value("attention.head_count"), value("attention.head_count_kv")
    names = {tensor.name for tensor in reader.tensors}
    config = LlamaConfig(
        vocab_size=value("vocab_size"),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        tie_word_embeddings="output.weight" not in names,
    )
    state = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            weight = unpermute(weight, heads if ".attn_q." in tensor.name else kv_heads)
        state[hf_name(tensor.name)] = torch.from_numpy(weight)
    model = LlamaForCausalLM(config).float().eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = ["lm_head.weight"] if config.tie_word_embeddings else []
    assert missing == tied, missing
    assert not unexpected, unexpected
    model.tie_weights()
    model.generation_config.eos_token_id = None
    return model


@torch.no_grad()
def greedy(model: LlamaForCausalLM, ids: list[int]) -> tuple[list[int], list[float]]:
    """NEW_TOKENS greedy tokens, EOS ignored, and the top-1 to top-2 logit gap of each."""
    result = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    top = torch.stack(result.logits)[:, 0].topk(2).values
    return result.sequences[0, len(ids) :].tolist(), (top[:, 0] - top[:, 1]).tolist()


def record_greedy(model: LlamaForCausalLM, prompts: list[dict]) -> None:
    records = []
    for prompt in prompts:
        tokens, margins = greedy(model, prompt["ids"])
        print(f"{prompt['name']}: min margin {min(margins):.4f}")
        assert min(margins) >= MIN_MARGIN, f"choose another prompt than {prompt['name']}"
        eos_index = tokens.index(EOS) if EOS in tokens else None
        extra = {"tokens": tokens, "eos_index": eos_index, "min_margin": round(min(margins), 6)}
        records.append(prompt | extra)
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    header = f'{{"transformers": "{transformers.__version__}", "records": [\n'
    (DATA / "smollm2_greedy.json").write_text(f"{header}{lines}\n]}}\n", encoding="utf-8")


@torch.no_grad()
def log_probs(model: LlamaForCausalLM, windows: np.ndarray) -> torch.Tensor:
    """float32 log-softmax at every position, [windows, length, vocab]."""
    rows = [model(torch.tensor(window[None])).logits[0].log_softmax(-1) for window in windows]
    return torch.stack(rows)


def perplexity(rows: torch.Tensor, windows: np.ndarray) -> float:
    """Over the next tokens of every window."""
    targets = torch.tensor(windows[:, 1:, None])
    return math.exp(-rows[:, :-1].gather(-1, targets).mean())


def kl_record(rows: torch.Tensor, windows: np.ndarray) -> dict[str, np.ndarray]:
    """What the npz holds of the reference (arrays explained in tests/oracles/README.md)."""
    head, ids = rows.topk(TOP, -1)
    tail = rows.exp().scatter(-1, ids, 0.0).flatten(0, 1)
    torch.manual_seed(0)
    sample = tail.multinomial(TAIL_SAMPLES, replacement=True).view(*rows.shape[:2], -1)
    targets = torch.tensor(windows[:, 1:, None])
    return {
        "token_ids": windows.astype(np.uint16),
        "next_logprobs": rows[:, :-1].gather(-1, targets)[..., 0].numpy(),
        "top_ids": ids.numpy().astype(np.uint16),
        "top_logprobs": head.numpy().astype(np.float16),
        "rest": tail.double().sum(-1).view(rows.shape[:2]).float().numpy(),
        "tail_ids": sample.numpy().astype(np.uint16),
        "tail_logprobs": rows.gather(-1, sample).numpy().astype(np.float16),
    }


def estimated_kl(record: dict[str, np.ndarray], other: np.ndarray) -> np.ndarray:
    """KL(reference || other) a position from the record, [windows, length]; `other` is log-probs.

    The top tokens and one bucket for the rest are exact and a lower bound; what the bucket hides,
    rest * KL(tail || other's tail), is estimated from tokens drawn from the tail.
    """
    top = record["top_logprobs"].astype(np.float64)
    other_top = np.take_along_axis(other, record["top_ids"].astype(np.int64), -1)
    rest = record["rest"].astype(np.float64)
    other_rest = np.maximum(1 - np.exp(other_top.astype(np.float64)).sum(-1), 1e-9)
    bucketed = (np.exp(top) * (top - other_top)).sum(-1) + rest * np.log(rest / other_rest)
    other_tail = np.take_along_axis(other, record["tail_ids"].astype(np.int64), -1)
    ratio = record["tail_logprobs"].astype(np.float64) - other_tail
    return bucketed + rest * (ratio.mean(-1) - np.log(rest / other_rest))


def full_kl(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Mean over positions of KL(reference || other), the whole vocabulary."""
    return float((reference.double().exp() * (reference - other)).sum(-1).mean())


def round_to_int8(model: LlamaForCausalLM) -> None:
    """Per-channel symmetric int8 in place, a perturbation of the size that ovgen may make."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                scale = parameter.abs().amax(1, keepdim=True) / 127
                parameter.copy_((parameter / scale).round() * scale)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf")
    parser.add_argument("--report", action="store_true", help="the KL estimate's error at int8")
    arguments = parser.parse_args()
    inputs = json.loads((DATA / "smollm2_ids.json").read_text(encoding="utf-8"))
    windows = np.array(list(inputs["windows"].values()))
    model = load(arguments.gguf)
    rows = log_probs(model, windows)
    record = kl_record(rows, windows)
    np.savez_compressed(DATA / "smollm2_kl.npz", names=np.array(list(inputs["windows"])), **record)
    for name, row, window in zip(inputs["windows"], rows, windows, strict=True):
        print(f"{name}: perplexity {perplexity(row[None], window[None]):.3f}")
    print(f"all: {perplexity(rows, windows):.4f}; in top {TOP}: {1 - record['rest'].mean():.4f}")
    record_greedy(model, inputs["prompts"])
    if arguments.report:
        print(f"KL of itself, estimated: {estimated_kl(record, rows.numpy()).mean():.7f}")
        round_to_int8(model)
        other = log_probs(model, windows)
        print(f"int8 per channel: perplexity {perplexity(other, windows):.4f}")
        print(f"  KL full {full_kl(rows, other):.6f}")
        print(f"  KL estimated {estimated_kl(record, other.numpy()).mean():.6f}")


if __name__ == "__main__":
    main()
