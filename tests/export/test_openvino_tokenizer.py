"""The OpenVINO tokenizer models against tokenizer.json, which the library `tokenizers` runs."""

import json
from collections.abc import Callable
from pathlib import Path

import openvino as ov
import pytest
import small_tokenizers
from export.gguf_vocabularies import BPE, SPM, write
from oracles.llama_cpp_pre_tokenizers import vocabulary, write_gguf
from tokenizers import Tokenizer

from ovgen.errors import ModelFormatError, StorageError
from ovgen.export.gguf import open_gguf
from ovgen.export.openvino_tokenizer import export_openvino_tokenizer
from ovgen.export.tokenizer import export_tokenizer

DATA = Path(__file__).parent / "data"
STRINGS = json.loads((DATA / "tokenizer_strings.json").read_text(encoding="utf-8"))["strings"]
# A numpy string drops NUL at its end, so that it cannot be passed in from Python.
STRINGS = [text for text in STRINGS if not text.endswith("\0")]

# The library's BPE looks its start symbols up in the vocabulary with the byte tokens in it, so a
# text that spells one becomes it.
SPELLS_A_BYTE = ["<0x0A>", "<0x00>", "<0xFF>x"]


def compiled(folder: Path) -> tuple[Callable[[str], list[int]], Callable[[list[int]], str]]:
    core = ov.Core()
    tokenizer = core.compile_model(folder / "openvino_tokenizer.xml", "CPU")
    detokenizer = core.compile_model(folder / "openvino_detokenizer.xml", "CPU")
    return (
        lambda text: tokenizer([text])["input_ids"][0].tolist(),
        lambda ids: str(detokenizer([ids])["string_output"][0]),
    )


def differing(folder: Path) -> tuple[list[str], list[str]]:
    """The strings whose ids, and those whose decoded text, tokenizer.json has otherwise."""
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encode, decode = compiled(folder)
    ids = {text: reference.encode(text).ids for text in STRINGS}
    return (
        [text for text in STRINGS if encode(text) != ids[text]],
        [
            text
            for text in STRINGS
            if ids[text] and decode(ids[text]) != reference.decode(ids[text])
        ],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A byte-level tokenizer with bos and a chat template, exported."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_gguf(folder / "model.gguf", "smollm", *vocabulary(STRINGS))
    with open_gguf(folder / "model.gguf") as file:
        file.metadata["tokenizer.ggml.add_bos_token"] = True
        file.metadata["tokenizer.chat_template"] = "{{ messages }}"
        export_tokenizer(file, folder)
    export_openvino_tokenizer(folder)
    return folder


@pytest.mark.parametrize("kind", ["default", "gpt-2", "dbrx", "qwen2", "gpt-4o", "deepseek-v3"])
def test_splits_as_tokenizer_json_does(kind, tmp_path):
    write_gguf(tmp_path / "model.gguf", kind, *vocabulary(STRINGS))
    with open_gguf(tmp_path / "model.gguf") as file:
        export_tokenizer(file, tmp_path)
    export_openvino_tokenizer(tmp_path)
    assert differing(tmp_path) == ([], [])


SMALL_TEXTS = [
    "ab", " ab", "ab ab", "a<tags>b", "<tags>", "é a", "aaaa  b", "caab", "ab</s>", "ab<|im_end|>",
    "ab  ab", "bbé ab", "   ", "ab\u3000b",
]  # fmt: skip


@pytest.mark.parametrize(
    "metadata",
    [SPM, SPM | {"tokenizer.ggml.add_space_prefix": False}, BPE],
    ids=["prefix", "no prefix", "byte-level"],
)
def test_small_vocabularies(metadata, tmp_path):
    with open_gguf(write(tmp_path / "model.gguf", metadata)) as file:
        export_tokenizer(file, tmp_path)
    export_openvino_tokenizer(tmp_path)
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    encode, decode = compiled(tmp_path)
    texts = [
        text for text in SMALL_TEXTS if metadata is not BPE or set(text) <= set("ab <|im_end|>")
    ]
    ids = {text: reference.encode(text).ids for text in texts}
    assert {text: encode(text) for text in texts} == ids
    assert [decode(i) for i in ids.values()] == [reference.decode(i) for i in ids.values()]


def test_adds_bos(folder):
    assert differing(folder) == ([], [])


def test_is_described_as_openvino_genai_expects(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    ids = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    bos, eos = ids[config["bos_token"]], ids[config["eos_token"]]
    for name in "openvino_tokenizer", "openvino_detokenizer":
        model = ov.Core().read_model(folder / f"{name}.xml")
        info = model.get_rt_info()
        assert info["bos_token_id"].astype(int) == bos
        assert info["eos_token_id"].astype(int) == eos
        assert info["chat_template"].astype(str) == "{{ messages }}"
        assert info["openvino_tokenizers_version"].astype(str)
        template = json.loads(info["processed_post_processor_template"].astype(str))
        assert template["single"]["ids"] == [bos, -1]
        assert template["pair"]["ids"] == [bos, -1, bos, -2]


def test_inputs_and_outputs_are_those_of_a_converted_tokenizer(folder):
    tokenizer = ov.Core().read_model(folder / "openvino_tokenizer.xml")
    assert [o.get_any_name() for o in tokenizer.outputs] == ["input_ids", "attention_mask"]
    assert {o.element_type for o in tokenizer.outputs} == {ov.Type.i64}
    detokenizer = ov.Core().read_model(folder / "openvino_detokenizer.xml")
    assert detokenizer.input().element_type == ov.Type.i64
    assert "string_output" in detokenizer.output().names


@pytest.mark.model
@pytest.mark.parametrize(("name", "known"), [("smollm2", []), ("gemma3", SPELLS_A_BYTE)])
def test_real_vocabularies(name, known, request, tmp_path):
    with open_gguf(request.getfixturevalue(f"{name}_gguf")) as file:
        export_tokenizer(file, tmp_path)
    export_openvino_tokenizer(tmp_path)
    assert differing(tmp_path) == (known, [])


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(StorageError, match=r"tokenizer\.json: cannot be read"):
        export_openvino_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json: not JSON"):
        export_openvino_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}}}')
    with pytest.raises(ModelFormatError, match="not a usable tokenizer"):
        export_openvino_tokenizer(tmp_path)
    small_tokenizers.byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelFormatError, match=r"tokenizer_config\.json: not JSON"):
        export_openvino_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelFormatError, match="expected a JSON object"):
        export_openvino_tokenizer(tmp_path)
