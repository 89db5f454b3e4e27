"""Small vocabularies of both kinds, as GGUF metadata, and a writer for them."""

from pathlib import Path

import gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

SPM_WORDS = [
    "▁",
    "a",
    "b",
    "c",
    "ab",
    "bc",
    "abc",
    "aa",
    "aaa",
    "aaaa",
    "▁a",
    "▁ab",
    "ca",
    "cab",
    "▁▁",
]
SPM_TOKENS = ["<unk>", "<s>", "</s>", "<tags>", *(f"<0x{i:02X}>" for i in range(256)), *SPM_WORDS]
SPM_TYPES = [UNKNOWN, CONTROL, CONTROL, USER_DEFINED, *[BYTE] * 256, *[NORMAL] * len(SPM_WORDS)]
SPM_SCORES = [0.0] * 260 + [-float(i) for i in range(len(SPM_WORDS))]
SPM = {
    "general.architecture": "llama",
    "llama.context_length": 512,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": SPM_TOKENS,
    "tokenizer.ggml.scores": SPM_SCORES,
    "tokenizer.ggml.token_type": SPM_TYPES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
BPE = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "Ġ", "ab", "Ġab", "<|im_end|>", "<|s|>", "  "],
    "tokenizer.ggml.token_type": [NORMAL] * 5 + [CONTROL, CONTROL, USER_DEFINED],
    "tokenizer.ggml.merges": ["a b", "Ġ ab"],
    "tokenizer.ggml.bos_token_id": 6,
    "tokenizer.ggml.eos_token_id": 5,
}
WORDPIECE_TOKENS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "the", "##s", "un", "##aff"),
    *("##able", "run", "##ning", "cafe", ",", "!", "'", "a", "##a", "b", "##b", "##é", "é", "中"),
]
WORDPIECE = {
    "general.architecture": "bert",
    "tokenizer.ggml.model": "bert",
    "tokenizer.ggml.tokens": [
        token[2:] if token[:2] == "##" else token if token[0] == "[" else f"▁{token}"
        for token in WORDPIECE_TOKENS
    ],
    "tokenizer.ggml.token_type": [
        CONTROL if i < 5 else NORMAL for i in range(len(WORDPIECE_TOKENS))
    ],
    "tokenizer.ggml.unknown_token_id": 1,
    "tokenizer.ggml.cls_token_id": 2,
    "tokenizer.ggml.seperator_token_id": 3,
    "tokenizer.ggml.padding_token_id": 0,
}


def write(path: Path, metadata: dict) -> Path:
    """A GGUF file of metadata alone; a value of None leaves its key out."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture" or value is None:
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
