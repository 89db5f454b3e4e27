"""The special ids and types that are read from a GGUF file's metadata."""

import pytest
from export.gguf_vocabularies import BPE, SPM, write

from ovgen.export.gguf import open_gguf
from ovgen.export.vocabulary import added_ids, read_vocabulary


@pytest.fixture
def read(tmp_path):
    def read(metadata, **defaults):
        with open_gguf(write(tmp_path / "model.gguf", metadata)) as file:
            return read_vocabulary(file, **defaults)

    return read


@pytest.mark.parametrize(
    ("last_tokens", "wanted"),
    [
        (["x", "y"], (5,)),
        (["<|endoftext|>", "</s>"], (5, 6)),
        (["<|end|>", "<|eot_id|>"], (5, 6, 7)),
        (["<|end|>", "<|return|>"], (5, 7)),
        (["<|end|>", "<|flush|>"], (5, 7)),
    ],
)
def test_tokens_that_end_a_text_by_their_name(read, last_tokens, wanted):
    tokens = [*BPE["tokenizer.ggml.tokens"][:6], *last_tokens]
    vocabulary = read(BPE | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.bos_token_id": 5})
    assert vocabulary.info.eos_token_ids == wanted


def test_declared_ends_come_first(read):
    changes = {"tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.eom_token_id": 1}
    assert read(BPE | changes).info.eos_token_ids == (5, 3, 1)


def test_defaults_hold_where_the_file_declares_nothing(read):
    bare = SPM | {"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.eos_token_id": None}
    info = read(bare, bos=1, eos=2, unk=10**6).info
    assert (info.bos_token_id, info.eos_token_ids, info.unk_token_id) == (1, (2,), None)


def test_an_empty_token_gets_a_name(read):
    tokens = [*BPE["tokenizer.ggml.tokens"][:7], ""]
    assert read(BPE | {"tokenizer.ggml.tokens": tokens}).ids["[EMPTY_7]"] == 7


def test_added_tokens_are_the_marked_ones_and_the_ends(read):
    assert added_ids(read(BPE)) == [5, 6, 7]
    assert added_ids(read(BPE | {"tokenizer.ggml.token_type": None})) == [5]
