"""EngineConfig: checked once, fixed for good."""

from __future__ import annotations

import dataclasses

import pytest

from ovgen import ConfigError, EngineConfig


def test_defaults():
    config = EngineConfig()
    assert (config.device, config.precision, dict(config.properties)) == ("CPU", "default", {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", ""),
        ("device", None),
        ("precision", "fast"),
        ("precision", None),
        ("properties", 5),
        ("properties", None),
        ("properties", {5: 1}),
        ("profile", "fast"),
        ("profile", None),
        ("token_budget", 0),
        ("token_budget", -5),
        ("token_budget", 1.5),
        ("token_budget", True),
        ("max_num_seqs", 0),
        ("kv_cache_tokens", "8"),
        ("kv_cache_size", 0),
        ("kv_cache_size", True),
        ("kv_cache_size", float("inf")),
        ("kv_cache_precision", "int4"),
        ("prefix_caching", 1),
        ("attention_backend", "sdpa"),
        ("max_waiting_requests", 0),
    ],
)
def test_values_out_of_range_are_named(name: str, value: object):
    with pytest.raises(ConfigError, match=name) as caught:
        EngineConfig(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kv_cache_size": 1.5, "kv_cache_tokens": 9}, "say the same"),
        ({"kv_cache_precision": "u8", "precision": "exact"}, "precision='exact' sets"),
        (
            {"kv_cache_precision": "u8", "properties": {"KV_CACHE_PRECISION": "u8"}},
            "say the same",
        ),
        ({"attention_backend": "stateful", "max_num_seqs": 2}, "max_num_seqs has no effect"),
        ({"attention_backend": "stateful", "kv_cache_size": 2}, "kv_cache_size has no effect"),
        ({"attention_backend": "stateful", "kv_cache_tokens": 2}, "kv_cache_tokens has no effect"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, object], told: str):
    with pytest.raises(ConfigError, match=told):
        EngineConfig(**options)


@pytest.mark.parametrize("profile", ["latency", "throughput"])
def test_a_profile_would_have_no_effect_on_exact(profile: str):
    assert EngineConfig(profile=profile).profile == profile
    with pytest.raises(ConfigError, match="profile"):
        EngineConfig(profile=profile, precision="exact")


def test_later_changes_to_the_callers_properties_do_not_reach_it():
    properties = {"NUM_STREAMS": 1}
    config = EngineConfig(properties=properties)
    properties["NUM_STREAMS"] = 2
    assert config.properties["NUM_STREAMS"] == 1
    with pytest.raises(TypeError):
        config.properties["NUM_STREAMS"] = 3  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.device = "GPU"  # type: ignore[misc]
