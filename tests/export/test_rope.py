"""Rotary frequencies against those that transformers computes from the same configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovgen.errors import ModelFormatError, UnsupportedModelError
from ovgen.export.checkpoint_config import CheckpointConfig
from ovgen.export.rope import Rope, default_rope, read_rope

RECORDS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data" / "rope_frequencies.json").read_text()
)
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 4096}


def rope_of(config: dict[str, Any], **options: Any) -> Rope:
    return read_rope(CheckpointConfig(config, Path("model")), **options)


def as_before(config: dict[str, Any]) -> dict[str, Any]:
    """The config in the form of transformers 4."""
    scaling = dict(config["rope_parameters"])
    theta = scaling.pop("rope_theta")
    partial = scaling.pop("partial_rotary_factor", None)
    scaling["type"] = scaling.pop("rope_type")
    rest = {key: value for key, value in config.items() if key != "rope_parameters"}
    found = {**rest, "rope_theta": theta, "partial_rotary_factor": partial}
    return found if scaling["type"] == "default" else found | {"rope_scaling": scaling}


@pytest.mark.parametrize("form", [dict, as_before])
@pytest.mark.parametrize("name", RECORDS)
def test_frequencies_are_transformers(name: str, form: Any):
    record = RECORDS[name]
    rope = rope_of(form(record["config"]))
    assert rope.inverse_frequencies.dtype == np.float32
    np.testing.assert_allclose(rope.inverse_frequencies, record["inverse_frequencies"], rtol=2e-6)
    assert rope.attention_factor == pytest.approx(record["attention_factor"], rel=1e-6)
    assert rope.dim == 2 * len(record["inverse_frequencies"])
    if "long" in record:
        assert rope.long_inverse_frequencies is not None
        np.testing.assert_allclose(rope.long_inverse_frequencies, record["long"], rtol=2e-6)
        assert rope.original_length == 1024
    else:
        assert rope.long_inverse_frequencies is None


def test_the_pretraining_length_may_be_beside_the_rope():
    record = RECORDS["longrope"]
    config = {**record["config"], "original_max_position_embeddings": 2048}
    assert rope_of(config).original_length == 2048


def test_equal_factors_need_no_choice():
    config = RECORDS["longrope"]["config"]
    scaling = config["rope_parameters"] | {"long_factor": config["rope_parameters"]["short_factor"]}
    assert rope_of(config | {"rope_parameters": scaling}).long_inverse_frequencies is None


def test_layers_may_have_ropes_of_their_own():
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = SIZES | {"rope_parameters": nested}
    full = rope_of(config, layer_type="full_attention")
    near = rope_of(config, layer_type="sliding_attention")
    np.testing.assert_allclose(full.inverse_frequencies[1], 1e6 ** (-2 / 16) / 8, rtol=1e-6)
    np.testing.assert_array_equal(
        near.inverse_frequencies, default_rope(1e4, 16).inverse_frequencies
    )


def test_defaults_are_for_what_the_config_leaves_out():
    rope = rope_of(SIZES, theta=1e6, partial=0.5)
    np.testing.assert_allclose(rope.inverse_frequencies, 1e6 ** (-np.arange(4) / 4), rtol=1e-6)
    synonyms = {"su": "longrope"}
    record = RECORDS["longrope"]
    scaling = record["config"]["rope_parameters"] | {"rope_type": "su"}
    rope = rope_of(record["config"] | {"rope_parameters": scaling}, synonyms=synonyms)
    np.testing.assert_allclose(rope.inverse_frequencies, record["inverse_frequencies"], rtol=2e-6)


@pytest.mark.parametrize(
    ("parameters", "error", "says"),
    [
        ({"rope_type": "xpos"}, UnsupportedModelError, r"rope_parameters\.rope_type is 'xpos'"),
        ({"type": "mrope"}, UnsupportedModelError, r"rope_parameters\.type is 'mrope'"),
        ({"rope_type": "linear"}, ModelFormatError, "factor is missing"),
        ({"rope_type": "linear", "factor": 0}, ModelFormatError, "factor is 0, expected"),
        ({"rope_theta": -1}, ModelFormatError, "rope_theta is -1, expected"),
        ({"partial_rotary_factor": 0.01}, ModelFormatError, "0 of a head's 16 features"),
        ({"partial_rotary_factor": 0.2}, ModelFormatError, "3 of a head's 16 features"),
        ({"partial_rotary_factor": 2}, ModelFormatError, "partial_rotary_factor is 2, expected"),
        (
            {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4},
            ModelFormatError,
            "low_freq_factor is 4.0, expected less than high_freq_factor, 4.0",
        ),
        (
            {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]},
            ModelFormatError,
            "short_factor is .*, expected a list of 8 numbers",
        ),
        (
            {"rope_type": "longrope", "short_factor": [0] * 8, "long_factor": [1] * 8},
            ModelFormatError,
            "short_factor has 0, expected",
        ),
        (
            {"rope_type": "longrope", "original_max_position_embeddings": 1, "factor": 2},
            ModelFormatError,
            "original_max_position_embeddings is 1, expected",
        ),
        ({"rope_type": "yarn", "rope_theta": 1.0, "factor": 2}, ModelFormatError, "rope_theta"),
        ([], ModelFormatError, r"rope_parameters is \[\], expected an object"),
    ],
)
def test_what_cannot_be(parameters: Any, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        rope_of(SIZES | {"rope_parameters": parameters})
