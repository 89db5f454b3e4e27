"""The language model of gemma3 as it is stored beside its eyes, by transformers' names, 4 and 5."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from tiny_checkpoints import logits, records, tensor_values, write_checkpoint, write_safetensors

from ovgen.errors import ModelFormatError
from ovgen.export.exporter import export_model, open_checkpoint

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
RECORD = records()["gemma3"]


def new_name(name: str) -> str:
    return name.replace("model.", "model.language_model.", 1)


def old_name(name: str) -> str:
    return f"language_model.{name}"


def write_seeing(folder: Path, rename: Any, text_config: Any) -> Path:
    """The tiny gemma3 with a vision tower that nobody reads."""
    config = {"model_type": "gemma3", "eos_token_id": [1, 5], "text_config": text_config}
    write_checkpoint(folder, replace(RECORD, config=config | {"vision_config": {}}, tensors={}))
    tensors = {rename(name): values for name, values in tensor_values(RECORD).items()}
    eyes = {
        f"{prefix}vision_tower.weight": np.ones((4, 4), np.float32) for prefix in ("", "model.")
    }
    write_safetensors(folder / "model.safetensors", tensors | eyes)
    return folder


@pytest.mark.parametrize("rename", [old_name, new_name])
def test_logits_are_those_of_the_language_model(rename: Any, tmp_path: Path):
    source = write_seeing(tmp_path / "seeing", rename, RECORD.config)
    folder = export_model(source, tmp_path / "out", weights="fp32")
    config = json.loads((folder / "config.json").read_text())
    assert config == RECORD.config | {"eos_token_id": [1, 5]}
    request = ov.Core().compile_model(folder / "openvino_model.xml", "CPU", EXACT)
    request = request.create_infer_request()
    prompt = RECORD.prompts[0]
    feed = {
        "input_ids": np.array([prompt]),
        "attention_mask": np.ones((1, len(prompt)), np.int64),
        "position_ids": np.arange(len(prompt))[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    wanted = logits("gemma3")[1]
    np.testing.assert_allclose(request.infer(feed)["logits"][0], wanted, atol=1e-4, rtol=0)


def test_a_config_has_what_transformers_takes_for_granted(tmp_path: Path):
    # As google/gemma-3-4b-it has it.
    given = {"model_type": "gemma3_text", "hidden_size": 2560, "sliding_window": 1024}
    with open_checkpoint(write_seeing(tmp_path / "seeing", old_name, given)) as checkpoint:
        config = checkpoint.config
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (8, 4)
    assert (config["head_dim"], config["vocab_size"]) == (256, 262208)
    assert (config["hidden_size"], config["sliding_window"]) == (2560, 1024)


def test_a_text_config_that_is_no_object(tmp_path: Path):
    source = write_seeing(tmp_path / "seeing", old_name, [])
    with pytest.raises(ModelFormatError, match=r"text_config is \[\], not an object"):
        open_checkpoint(source)
