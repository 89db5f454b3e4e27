"""tokenizer.json against the package itself, and everything that may be wrong with a folder."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import tokenizers

from ovgen.errors import ModelFormatError, ModelNotFoundError, RequestError
from ovgen.text.tokenizer import load_tokenizer


def test_encodes_and_decodes(small_tokenizers):
    tokenizer = small_tokenizers["byte_level"]
    ids = tokenizer.encode("hello 你")
    assert ids[0] == tokenizer.token_to_id("<s>") == 0
    assert ids[1:] == tokenizer.encode("hello 你", add_special_tokens=False)
    assert tokenizer.decode(ids) == "hello 你"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>hello 你"


def test_knows_its_vocabulary(small_tokenizers):
    tokenizer = small_tokenizers["byte_level"]
    assert tokenizer.vocab_size == 332
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.id_to_token(330) == "<tool>"
    assert tokenizer.token_to_id("no such token") is None
    assert tokenizer.id_to_token(332) is tokenizer.id_to_token(-1) is None
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


def test_truncation_and_padding_of_the_file_are_off(tokenizer_folders, tmp_path):
    inner = tokenizers.Tokenizer.from_file(str(tokenizer_folders["byte_level"] / "tokenizer.json"))
    expected = inner.encode("the quick brown fox").ids
    inner.enable_truncation(2)
    inner.enable_padding(length=64)
    inner.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("the quick brown fox") == expected


def test_special_tokens_from_the_old_file(tokenizer_folders, tmp_path):
    source = tokenizer_folders["byte_level"] / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(source.read_bytes())
    assert load_tokenizer(tmp_path).eos_token is None
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}}')
    assert load_tokenizer(tmp_path).eos_token == "</s>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ab\ud800c", r"lone surrogate U\+D800 at character 2"),
        (b"bytes", "must be a str, not a bytes"),
        (None, "must be a str, not a NoneType"),
    ],
)
def test_text_that_cannot_be_encoded(small_tokenizers, text, message):
    with pytest.raises(RequestError, match=message):
        small_tokenizers["llama2"].encode(text)


@pytest.mark.parametrize("bad", [332, -1, 2**31, 2**40])
def test_unknown_ids(small_tokenizers, bad):
    with pytest.raises(RequestError, match=f"token id {bad} is not in .* 332 tokens"):
        small_tokenizers["byte_level"].decode([5, bad])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "EOF while parsing"),
        ("", "EOF while parsing"),
        ("[]", "expected struct"),
        ('{"version": "1.0"}', "Model missing"),
        ('{"model": {"type": "Nonsense"}}', "."),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["q z"]}}', "out of vocabulary"),
    ],
)
def test_broken_tokenizer_json(tmp_path, content, reason):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFormatError, match=rf"tokenizer\.json is not a usable .*{reason}") as e:
        load_tokenizer(tmp_path)
    assert "\n" not in str(e.value)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json is not UTF-8 text"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "null", "[" * 100_000])
def test_broken_config(tokenizer_folders, tmp_path, content):
    source = tokenizer_folders["byte_level"] / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(source.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ModelFormatError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)


def test_no_tokenizer(tmp_path):
    (tmp_path / "openvino_tokenizer.xml").touch()  # half of a pair is none
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json, or openvino_tokenizer\.xml"):
        load_tokenizer(tmp_path)


def test_a_panic_of_the_library_is_an_error_and_an_interrupt_is_not(small_tokenizers):
    class PanicException(BaseException):
        """As pyo3 has it."""

    class Failing:
        def __init__(self, error):
            self.error = error

        def encode(self, *args, **kwargs):
            raise self.error

    tokenizer = object.__new__(type(small_tokenizers["byte_level"]))
    tokenizer._tokenizer = Failing(PanicException("index out of\nrange"))
    with pytest.raises(RequestError, match="index out of range"):
        tokenizer.encode("a")
    tokenizer._tokenizer = Failing(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("a")


def test_several_threads(small_tokenizers):
    tokenizer = small_tokenizers["llama2"]
    texts = [f"hello {n} 你好 " * 5 for n in range(200)]
    expected = [tokenizer.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == expected
        assert list(pool.map(tokenizer.decode, expected)) == texts


def test_a_fork_after_encoding_is_silent(tokenizer_folders):
    """The package warns of forks after it has used its thread pool; single encodes do not."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from ovgen.text.tokenizer import load_tokenizer\n"
        "t = load_tokenizer(Path(sys.argv[1])); t.encode('a ' * 5000)\n"
        "pid = os.fork()\n"
        "t.encode('a b')\n"
        "pid and os.waitpid(pid, 0)\n"
    )
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this platform")
    command = [sys.executable, "-W", "ignore", "-c", code, str(tokenizer_folders["byte_level"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_config_roles(tmp_path):
    from ovgen.text.tokenizer_config import read_tokenizer_config

    tokens = {"bos_token": None, "eos_token": {"content": "E"}, "additional_special_tokens": ["x"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**tokens, "add_bos_token": True}))
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "B", "eos_token": "old"}')
    config = read_tokenizer_config(tmp_path)
    assert config.special_tokens == {
        "bos_token": "B",
        "eos_token": "E",
        "additional_special_tokens": ["x"],
    }
