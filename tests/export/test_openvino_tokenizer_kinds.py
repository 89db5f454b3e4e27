"""The OpenVINO models of every kind of tokenizer.json that the families have, against
`tokenizers`; what the steps cannot express is left out and said.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import openvino as ov
import pytest
import small_tokenizers
from export.test_openvino_tokenizer import STRINGS, compiled
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from ovgen.errors import ModelFormatError
from ovgen.export import tokenizer_checks
from ovgen.export.openvino_tokenizer import export_openvino_tokenizer

pre, post = pre_tokenizers, processors
BYTES = pre.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre.ByteLevel(add_prefix_space=False)
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = Regex(QWEN_PATTERN)
LLAMA3 = Regex(QWEN_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"))
BOS = post.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 0)])

# As the families' own files have it: normalizer, pre-tokenizer, post-processor.
BYTE_LEVEL = {
    "gpt2, phi2, smollm": (None, GPT2, post.ByteLevel()),
    "opt": (None, GPT2, post.TemplateProcessing("</s> $A", None, [("</s>", 1)])),
    "gpt_neox, mpt, stablelm": (normalizers.NFC(), GPT2, post.ByteLevel(trim_offsets=True)),
    "qwen2, qwen3": (normalizers.NFC(), pre.Sequence([pre.Split(QWEN, "isolated"), BYTES]), None),
    "llama3, smollm3": (
        None,
        pre.Sequence([pre.Split(LLAMA3, "isolated"), BYTES]),
        post.Sequence([post.ByteLevel(), BOS]),
    ),
    "starcoder2, granite": (None, pre.Sequence([pre.Digits(individual_digits=True), GPT2]), None),
    "cohere": (
        normalizers.NFC(),
        pre.Sequence([pre.Digits(individual_digits=True), GPT2]),
        BOS,
    ),
    "bloom": (
        None,
        pre.Sequence([pre.Split(Regex(" ?[^(\\s|[.,!?…。，、।۔،])]+"), "isolated"), BYTES]),  # noqa: RUF001
        None,
    ),
    "roberta": (
        None,
        pre.ByteLevel(add_prefix_space=True),
        post.RobertaProcessing(("</s>", 1), ("<s>", 0)),
    ),
}


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


def saved(folder: Path, tokenizer: Tokenizer, **config: object) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_byte_level(name: str, tmp_path: Path):
    tokenizer = small_tokenizers.byte_level()
    normalizer, pre_tokenizer, post_processor = BYTE_LEVEL[name]
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.post_processor = post_processor or post.ByteLevel()
    assert export_openvino_tokenizer(saved(tmp_path, tokenizer)) is None
    ids, texts = differing(tmp_path)
    if normalizer is not None:  # the library's NFC leaves alone what is partly composed already
        ids = [text for text in ids if "\u00fc\u0301" not in text]
    assert (ids, texts) == ([], [])


@pytest.mark.parametrize("has_other", [False, True])
def test_the_decoder_that_transformers_makes_of_a_gguf(has_other: bool, tmp_path: Path):
    """Of the whole text: one character that is no byte's letter, and none is taken for a byte."""
    tokenizer = Tokenizer(small_tokenizers.byte_level().model)
    tokenizer.add_tokens(["中" if has_other else "<tool>"])
    tokenizer.pre_tokenizer = GPT2
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace("▁", " "),
            decoders.ByteLevel(),
        ]
    )
    line = export_openvino_tokenizer(saved(tmp_path, tokenizer))
    if has_other:
        assert line is not None
        assert "the decoder ByteFallback, Fuse, Replace, ByteLevel" in line
    else:
        assert line is None
        assert differing(tmp_path) == ([], [])


def sentencepiece(kind: str) -> Tokenizer:
    tokenizer = small_tokenizers.llama2()
    if kind == "mistral, llama 2 in later files":
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="first", split=False)
        tokenizer.post_processor = BOS
    elif kind == "gemma":
        tokenizer = small_tokenizers.gemma()
        tokenizer.pre_tokenizer = pre.Split(" ", "merged_with_previous")
        tokenizer.post_processor = BOS
    return tokenizer


@pytest.mark.parametrize("kind", ["llama2, phi3", "mistral, llama 2 in later files", "gemma"])
def test_sentencepiece_bpe(kind: str, tmp_path: Path):
    assert export_openvino_tokenizer(saved(tmp_path, sentencepiece(kind))) is None
    # The library's BPE looks a text that spells a byte token up as that token.
    assert differing(tmp_path) == (["<0x0A>", "<0x00>", "<0xFF>x"], [])


def bert(*, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=700, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator([*STRINGS, *tokenizer_checks.PROBES], trainer)
    tokenizer.post_processor = post.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tokenizer


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece(lowercase: bool, tmp_path: Path):
    assert export_openvino_tokenizer(saved(tmp_path, bert(lowercase=lowercase))) is None
    ids, texts = differing(tmp_path)
    if lowercase:  # the library folds case, which is more than to lower it
        ids = [text for text in ids if all(c.lower() == c.casefold() for c in text)]
    # And it counts the longest word in bytes.
    assert [text for text in ids if max(map(len, text.encode().split())) <= 100] == []
    assert texts == []


# --- what is left out


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    tokenizer.add_special_tokens(["<unk>"])
    return tokenizer


def falcon() -> Tokenizer:
    """Its digits are looked for after the bytes were made letters, some of which are digits."""
    tokenizer = small_tokenizers.byte_level()
    tokenizer.pre_tokenizer = pre.Sequence(
        [
            pre.Punctuation("contiguous"),
            GPT2,
            pre.Digits(individual_digits=False),
            pre.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )
    return tokenizer


def changed(**changes: object) -> Callable[[], Tokenizer]:
    def make() -> Tokenizer:
        content = json.loads(small_tokenizers.byte_level().to_str())
        for name, value in changes.items():
            content[name] = {**content[name], **value} if name == "model" else value
            if name == "model":
                del content[name]["merges"]
        return Tokenizer.from_str(json.dumps(content))

    return make


def with_single_word() -> Tokenizer:
    tokenizer = small_tokenizers.byte_level()
    tokenizer.add_tokens([AddedToken("word", single_word=True)])
    return tokenizer


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (unigram, "the Unigram model"),
        (falcon, "otherwise than tokenizer.json"),
        (small_tokenizers.word_suffix, "BPE with end of word suffix"),
        (small_tokenizers.metaspace, "the decoder ByteFallback, Metaspace"),
        (with_single_word, "found as whole words alone"),
        (changed(normalizer={"type": "Nmt"}), "normalizer Nmt"),
        (
            changed(normalizer={"type": "Replace", "pattern": {"Regex": "a(b)"}, "content": "$1"}),
            "the replacement '$1'",
        ),
        (changed(pre_tokenizer={"type": "UnicodeScripts"}), "pre-tokenizer UnicodeScripts"),
        (changed(decoder={"type": "CTC", "pad_token": "", "word_delimiter_token": "|",
                          "cleanup": True}), "the decoder CTC"),
        (changed(added_tokens=[], post_processor=None), "a tokenizer without added tokens"),
        (
            changed(model={"type": "WordLevel", "unk_token": "a"}),
            "tokenizer model WordLevel",
        ),
    ],
)  # fmt: skip
def test_left_out_and_said(make: Callable[[], Tokenizer], told: str, tmp_path: Path):
    line = export_openvino_tokenizer(saved(tmp_path, make()))
    assert line is not None
    assert line.startswith("no OpenVINO tokenizer: it ")
    assert told in line
    assert list(tmp_path.glob("openvino_*")) == []


def test_what_the_library_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError("zero-length\nkey")

    monkeypatch.setattr("ovgen.export.openvino_tokenizer._run", fail)
    line = export_openvino_tokenizer(saved(tmp_path, small_tokenizers.byte_level()))
    assert line == "no OpenVINO tokenizer: openvino_tokenizers cannot do it (zero-length key)"
    assert list(tmp_path.glob("openvino_*")) == []


def test_words_that_no_merges_make(tmp_path: Path):
    tokenizer = small_tokenizers.byte_level()
    content = json.loads(tokenizer.to_str())
    content["model"]["ignore_merges"] = True
    content["model"]["vocab"]["zq"] = 332
    line = export_openvino_tokenizer(saved(tmp_path, Tokenizer.from_str(json.dumps(content))))
    assert line is not None
    assert line.startswith("the OpenVINO tokenizer cuts 1 words that are tokens into several")
    assert (tmp_path / "openvino_tokenizer.xml").is_file()


# --- the files beside it


def test_added_tokens_beyond_the_vocabulary_and_objects_in_the_config(tmp_path: Path):
    tokenizer = small_tokenizers.byte_level()
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])
    tokenizer.add_tokens([AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True)])
    pad = tokenizer.token_to_id("<pad>")
    saved(
        tmp_path, tokenizer, pad_token={"content": "<pad>", "lstrip": False}, bos_token="<s>",
        eos_token=None, model_max_length=1e30, padding_side="left",
    )  # fmt: skip
    assert export_openvino_tokenizer(tmp_path) is None
    core = ov.Core()
    model = core.read_model(tmp_path / "openvino_tokenizer.xml")
    info = model.get_rt_info()
    assert info["pad_token_id"].astype(int) == pad > 330
    assert info["bos_token_id"].astype(int) == 0
    assert "eos_token_id" not in info
    compiled_model = core.compile_model(model, "CPU")
    both = compiled_model(["hello <left> <right> world", "a"])["input_ids"].tolist()
    ids = tokenizer.encode("hello <left> <right> world").ids
    assert both == [ids, [pad] * (len(ids) - 2) + tokenizer.encode("a").ids]


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"tokenizer_config.json": {"chat_template": "c"}}, "c"),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "tool_use", "template": "t"},
                        {"name": "default", "template": "d"},
                    ]
                }
            },
            "d",
        ),
        (
            {
                "chat_template.json": {"chat_template": "j"},
                "tokenizer_config.json": {"chat_template": "c"},
            },
            "j",
        ),
        ({"tokenizer_config.json": {}}, None),
    ],
)
def test_the_chat_template(files: dict[str, object], template: str | None, tmp_path: Path):
    saved(tmp_path, small_tokenizers.byte_level())
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert export_openvino_tokenizer(tmp_path) is None
    info = ov.Core().read_model(tmp_path / "openvino_tokenizer.xml").get_rt_info()
    found = info["chat_template"].astype(str) if "chat_template" in info else None
    assert found == template


@pytest.mark.parametrize("where", ["vocabulary", "added token"])
@pytest.mark.parametrize("token_id", [1 << 22, 2**31, -1, 1.5, True])
def test_ids_that_cannot_be(where: str, token_id: object, tmp_path: Path):
    """A table as long as the highest id would take all memory."""
    content = json.loads(small_tokenizers.byte_level().to_str())
    if where == "vocabulary":
        content["model"]["vocab"]["zq"] = token_id
    else:
        content["added_tokens"][-1]["id"] = token_id
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json: not a usable tokenizer"):
        export_openvino_tokenizer(tmp_path)


def test_without_a_config(tmp_path: Path):
    small_tokenizers.byte_level().save(str(tmp_path / "tokenizer.json"))
    assert export_openvino_tokenizer(tmp_path) is None


def test_truncation_where_it_is_asked_for(tmp_path: Path):
    saved(tmp_path, small_tokenizers.byte_level(), model_max_length=5)
    assert export_openvino_tokenizer(tmp_path) is None
    compiled_model = ov.Core().compile_model(tmp_path / "openvino_tokenizer.xml", "CPU")
    request = compiled_model.create_infer_request()
    assert len(request.infer(["a b c d e f g"])["input_ids"][0]) > 5
    (state,) = request.query_state()
    state.state = ov.Tensor([True])
    assert len(request.infer(["a b c d e f g"])["input_ids"][0]) == 5
