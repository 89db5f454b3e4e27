"""The generation options in a model folder's files: where they stand, and what is wrong there."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ovgen.errors import ModelFormatError
from ovgen.generation_config import GenerationConfig


def write(folder: Path, generation: object = None, config: object = None) -> Path:
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("generation", "config", "ids"),
    [
        ({"eos_token_id": 2}, {"eos_token_id": 9}, (2,)),
        ({"eos_token_id": [2, 3]}, None, (2, 3)),
        ({"eos_token_id": []}, {"eos_token_id": 9}, ()),
        ({"eos_token_id": None}, {"eos_token_id": 9}, (9,)),
        ({}, {"eos_token_id": 9, "temperature": 0.6}, (9,)),
        ({}, {"text_config": {"eos_token_id": 9}}, (9,)),
        (None, {"eos_token_id": [7]}, (7,)),
        (None, {}, ()),
        (None, None, ()),
    ],
)
def test_the_models_end_of_sequence_tokens(tmp_path: Path, generation, config, ids):
    write(tmp_path, generation, config)
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig(eos_token_id=ids)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (  # As Qwen's.
            {"bos_token_id": 1, "pad_token_id": 1, "do_sample": True, "eos_token_id": [2, 1]}
            | {"repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
            | {"transformers_version": "4.37.0"},
            {"do_sample": True, "eos_token_id": (2, 1), "repetition_penalty": 1.1}
            | {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
        ),
        (  # What means nothing here, or says nothing.
            {"_from_model_config": True, "output_attentions": True, "use_cache": False}
            | {"cache_implementation": "hybrid", "remove_invalid_values": True, "max_length": 20}
            | {"top_p": None, "penalty_alpha": 0, "encoder_repetition_penalty": 1.0}
            | {"dola_layers": None, "renormalize_logits": False, "top_k": 50, "chat_format": "x"},
            {"top_k": 50},
        ),
        (
            {"do_sample": False, "temperature": 0, "top_p": 0.9, "top_h": 0.5}
            | {"repetition_penalty": 1.2},
            {"top_p": 0.9, "repetition_penalty": 1.2},
        ),
        ({"temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        ({"temperature": 0.0}, {}),
        ({"num_beams": 1, "early_stopping": True, "length_penalty": 0.5}, {"num_beams": 1}),
        ({"num_beams": 4, "early_stopping": True}, {"num_beams": 4, "early_stopping": True}),
        ({"max_new_tokens": 64, "max_length": 2048}, {"max_new_tokens": 64}),
        ({"max_length": 2048, "min_length": 0}, {"max_length": 2048, "min_length": 0}),
        ({"min_length": 5}, {}),
        ({"min_length": 5, "eos_token_id": 2}, {"min_length": 5, "eos_token_id": (2,)}),
        ({"sequence_bias": [[[5], -1.0]]}, {"sequence_bias": (((5,), -1.0),)}),
        ({"stop_strings": "END"}, {"stop_strings": ("END",)}),
        ({"seed": 5, "do_sample": True}, {"seed": 5, "do_sample": True}),
    ],
)
def test_the_models_options(tmp_path: Path, generation, expected):
    config = GenerationConfig.from_pretrained(write(tmp_path, generation))
    assert config == GenerationConfig(**({"eos_token_id": ()} | expected))
    assert GenerationConfig().resolve(config).do_sample == bool(expected.get("do_sample"))


NESTED = GenerationConfig(
    do_sample=True,
    bad_words_ids=[[3, 4], [1]],
    sequence_bias={(5, 6): -math.inf},
    logit_bias={11: -math.inf, 9: 2},
    exponential_decay_length_penalty=(3, 1.1),
    dry_multiplier=0.5,
    dry_sequence_breakers="\n",
    eos_token_id=[1, 2],
    max_time=2.5,
)


@pytest.mark.parametrize(
    "config", [NESTED, NESTED.resolve(), GenerationConfig(ignore_eos=True, seed=1)]
)
def test_what_ovgen_wrote_comes_back(tmp_path: Path, config: GenerationConfig):
    write(tmp_path, config.to_dict(), {"eos_token_id": 9})
    assert GenerationConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"do_sample": True, "top_k": 5, "hidden_size": 8}, {"do_sample": True, "top_k": 5}),
        ({"seed": 5, "echo": 1, "logit_bias": 3}, {}),  # not an option of transformers
        ({"text_config": {"num_beams": 4}, "top_k": None}, {"num_beams": 4}),
        ({"text_config": {"num_beams": 4}, "num_beams": 2}, {"num_beams": 2}),
        ({"decoder": {"top_k": 3}, "text_config": {"top_k": 4}}, {"top_k": 3}),
        ({"text_config": "x"}, {}),
        (
            {"force_bos_token_to_be_generated": True, "bos_token_id": 1},
            {"forced_bos_token_id": 1},
        ),
    ],
)
def test_options_in_old_models_config(tmp_path: Path, config, expected):
    found = GenerationConfig.from_pretrained(write(tmp_path, None, config))
    assert found == GenerationConfig(eos_token_id=(), **expected)


def test_the_old_place_is_not_read_beside_the_new_one(tmp_path: Path):
    write(tmp_path, {"eos_token_id": 2}, {"do_sample": True, "top_k": 5})
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig(eos_token_id=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("penalty_alpha", 0.6),
        ("dola_layers", "high"),
        ("top_h", 0.4),
        ("encoder_repetition_penalty", 1.2),
        ("encoder_no_repeat_ngram_size", 3),
        ("renormalize_logits", True),
        ("watermarking_config", {"bias": 2.5}),
        ("constraints", [{}]),
        ("force_words_ids", [[5]]),
        ("forced_decoder_ids", [[1, 5]]),
    ],
)
@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
def test_a_strategy_that_ovgen_does_not_have_is_refused(tmp_path: Path, name, value, place):
    (tmp_path / place).write_text(json.dumps({name: value}))
    with pytest.raises(ModelFormatError, match=rf"{place}: {name}=.*does not have") as caught:
        GenerationConfig.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"do_sample": True, "temperature": 0}, "temperature must be"),
        ({"top_p": 2}, "top_p must be"),
        ({"repetition_penalty": "1.1"}, "repetition_penalty must be"),
        ({"do_sample": "yes"}, "do_sample must be"),
        ({"min_length": 9, "max_length": 5, "eos_token_id": 2}, "min_length=9 does not fit"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3"),
        ({"forced_eos_token_id": 5, "suppress_tokens": [5]}, ".* which suppress_tokens"),
    ],
)
def test_illegal_options_of_a_model_are_named(tmp_path: Path, generation, message):
    with pytest.raises(ModelFormatError, match=rf"generation_config\.json: {message}"):
        GenerationConfig.from_pretrained(write(tmp_path, generation))


def test_the_file_of_an_illegal_token_id_is_named(tmp_path: Path):
    write(tmp_path, {"temperature": 0.6}, {"eos_token_id": "</s>"})
    with pytest.raises(ModelFormatError, match=r"[^_]config\.json: eos_token_id must"):
        GenerationConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", "\ufeff", '{"eos_token_id": "</s>"}', '{"eos_token_id": [1.5]}', "[" * 10**5],
)
def test_broken_files_are_named(tmp_path: Path, content: str):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ModelFormatError, match=r"generation_config\.json") as caught:
        GenerationConfig.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
