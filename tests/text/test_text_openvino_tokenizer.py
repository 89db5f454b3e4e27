"""The OpenVINO pair; its vocabulary is 256 bytes and a few merges, so ids can be told by hand."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from ovgen.errors import ModelFormatError, RequestError
from ovgen.text.tokenizer import load_tokenizer

BOS, EOS, HE, HELL = 259, 260, 256, 258


@pytest.fixture(scope="module")
def tokenizer(ov_tokenizer_folder):
    return load_tokenizer(ov_tokenizer_folder)


def test_special_tokens_are_added_or_not(tokenizer):
    assert tokenizer.encode("hello") == [BOS, HELL, ord("o")]
    assert tokenizer.encode("hello", add_special_tokens=False) == [HELL, ord("o")]
    assert tokenizer.encode("<s>he</s>", add_special_tokens=False) == [BOS, HE, EOS]
    assert tokenizer.encode("", add_special_tokens=False) == []


def test_special_tokens_are_skipped_or_not(tokenizer):
    ids = [BOS, HELL, ord("o"), EOS]
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>hello</s>"
    assert tokenizer.decode([]) == ""


def test_truncation_and_clean_up_of_the_files_are_off(tokenizer):
    text = "a . b , c ' d n't"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_knows_its_vocabulary(tokenizer):
    assert tokenizer.vocab_size == 261
    assert tokenizer.special_ids == {BOS, EOS}
    assert tokenizer.token_to_id("hell") == HELL
    assert tokenizer.token_to_id("hello") is None
    assert tokenizer.id_to_token(HELL) == "hell"
    assert tokenizer.id_to_token(0xE4) == "\\xe4"
    assert tokenizer.id_to_token(261) is tokenizer.id_to_token(-1) is None
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


def test_invalid_bytes_and_nul(tokenizer):
    assert tokenizer.decode([0xE4, ord("a")]) == "\ufffda"
    assert tokenizer.decode(tokenizer.encode("a\0b")) == "a\0b"
    with pytest.raises(RequestError, match="ends with a NUL"):
        tokenizer.encode("a\0")


@pytest.mark.parametrize("bad", [261, -1, 2**40])
def test_unknown_ids(tokenizer, bad):
    with pytest.raises(RequestError, match=f"token id {bad} is not in .* 261 tokens"):
        tokenizer.decode([5, bad])


def test_a_lone_surrogate(tokenizer):
    with pytest.raises(RequestError, match="lone surrogate"):
        tokenizer.encode("\udfff")


def test_several_threads(tokenizer):
    texts = [f"hello {n} 你好" for n in range(200)]
    with ThreadPoolExecutor(4) as pool:
        assert [tokenizer.decode(ids) for ids in pool.map(tokenizer.encode, texts)] == texts


def test_leaves_openvino_as_it_is(ov_tokenizer_folder):
    program = (
        "import sys; from pathlib import Path; from ovgen.text.tokenizer import load_tokenizer;"
        "print(load_tokenizer(Path(sys.argv[1])).encode('a') and sys.modules.keys())"
    )
    command = [sys.executable, "-c", program, str(ov_tokenizer_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "'openvino'" in done.stdout
    assert "openvino_tokenizers" not in done.stdout


def test_broken_files(ov_tokenizer_folder, tmp_path):
    for path in ov_tokenizer_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = tmp_path / "openvino_detokenizer.xml"
    broken.write_bytes(broken.read_bytes()[:500])
    with pytest.raises(ModelFormatError, match=r"openvino_detokenizer\.xml is not a usable") as e:
        load_tokenizer(tmp_path)
    assert "\n" not in str(e.value)
