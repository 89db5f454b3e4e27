"""Typed access to a config that may hold anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ovgen.errors import ModelFormatError, UnsupportedModelError
from ovgen.export.checkpoint_config import CheckpointConfig

Get = Callable[[CheckpointConfig], Any]


def config(**values: Any) -> CheckpointConfig:
    return CheckpointConfig(values, Path("model"))


LLAMA = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 256}


@pytest.mark.parametrize(
    ("values", "get", "expected"),
    [
        ({"n": 3}, lambda c: c.get_int("n"), 3),
        ({"n": None}, lambda c: c.get_int("n", default=5), 5),
        ({}, lambda c: c.get_int("n", default=5), 5),
        ({"x": 1}, lambda c: c.get_float("x"), 1.0),
        ({"x": 0.5}, lambda c: c.find_float("x"), 0.5),
        ({"x": None}, lambda c: c.find_float("x"), None),
        ({"b": False}, lambda c: c.get_bool("b", default=True), False),
        ({"s": "a"}, lambda c: c.get_str("s"), "a"),
        ({"v": [1, 2.5]}, lambda c: c.get_floats("v", 2), [1.0, 2.5]),
        ({"v": ["a", "b"]}, lambda c: c.get_strs("v", 2, ("a", "b")), ["a", "b"]),
        ({"hidden_act": "gelu_new"}, lambda c: c.get_activation(), "gelu_new"),
        ({}, lambda c: c.get_activation(default="silu"), "silu"),
        ({"o": {"n": 3}}, lambda c: c.get_object("o").get_int("n"), 3),
        ({"v": [0, 2]}, lambda c: c.get_ints("v"), [0, 2]),
        ({"v": None}, lambda c: c.get_ints("v"), []),
        ({"n_embd": 8}, lambda c: c.renamed(hidden_size="n_embd").hidden_size, 8),
        ({"hidden_size": 8}, lambda c: c.renamed(hidden_size="n_embd").hidden_size, 8),
        (
            {"n_embd": None, "hidden_size": 8},
            lambda c: c.renamed(hidden_size="n_embd").hidden_size,
            8,
        ),
        ({"o": None}, lambda c: c.get_object("o"), None),
        (LLAMA, lambda c: c.head_dim, 16),
        (LLAMA | {"head_dim": 24}, lambda c: c.head_dim, 24),
        (LLAMA, lambda c: c.num_key_value_heads, 4),
        (LLAMA | {"num_key_value_heads": 2}, lambda c: c.num_key_value_heads, 2),
        (LLAMA | {"sliding_window": 100}, lambda c: c.get_window(), 100),
        (LLAMA | {"sliding_window": 256}, lambda c: c.get_window(), None),
        (LLAMA, lambda c: c.get_window(), None),
        (LLAMA, lambda c: c.get_window(default=128), 128),
        (LLAMA | {"sliding_window": None}, lambda c: c.get_window(default=128), None),
        ({"num_hidden_layers": 3}, lambda c: c.sliding_layers(lambda i: i == 1), [0, 1, 0]),
        (
            {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
            lambda c: c.sliding_layers(lambda i: False),
            [1, 0],
        ),
    ],
)
def test_values(values: dict[str, Any], get: Get, expected: Any):
    assert get(config(**values)) == expected


@pytest.mark.parametrize(
    ("values", "get", "says"),
    [
        ({}, lambda c: c.get_int("n"), "model: n is missing"),
        ({"n": None}, lambda c: c.get_int("n"), "model: n is missing"),
        ({"n": True}, lambda c: c.get_int("n"), "n is True, expected an integer from 1 to 1048576"),
        ({"n": 3.0}, lambda c: c.get_int("n"), "n is 3.0, expected an integer"),
        ({"n": "3"}, lambda c: c.get_int("n"), "n is '3', expected an integer"),
        ({"n": 0}, lambda c: c.get_int("n"), "n is 0, expected an integer from 1"),
        ({"n": 1 << 40}, lambda c: c.get_int("n"), "n is 1099511627776, expected"),
        ({"x": "1"}, lambda c: c.get_float("x"), "x is '1', expected a number"),
        ({"x": float("nan")}, lambda c: c.get_float("x"), "x is nan, expected a number"),
        ({"x": float("inf")}, lambda c: c.get_float("x"), "x is inf, expected a number"),
        ({"x": -1}, lambda c: c.get_float("x", min=0, max=1), "x is -1, expected a number from 0"),
        ({"b": 1}, lambda c: c.get_bool("b"), "b is 1, expected true or false"),
        ({"s": []}, lambda c: c.get_str("s"), r"s is \[\], expected a string"),
        ({"v": 1}, lambda c: c.get_ints("v"), "v is 1, expected a list of integers from 0 to"),
        ({"v": [True]}, lambda c: c.get_ints("v"), "v is True, expected a list of integers"),
        ({"v": [3]}, lambda c: c.get_ints("v", max=2), "v is 3, expected .* from 0 to 2"),
        ({"v": [1]}, lambda c: c.get_floats("v", 2), "v is .*, expected a list of 2 numbers"),
        ({"v": [1, "2"]}, lambda c: c.get_floats("v", 2), "v is .*, expected finite numbers"),
        ({"v": "ab"}, lambda c: c.get_strs("v", 2, ("a",)), "v is 'ab', expected a list of 2"),
        ({"o": []}, lambda c: c.get_object("o"), r"o is \[\], expected an object"),
        ({"o": {"n": 0}}, lambda c: c.get_object("o").get_int("n"), r"model: o\.n is 0"),
        ({"o": {}}, lambda c: c.get_object("o").get_int("n"), r"model: o\.n is missing"),
        (LLAMA | {"hidden_size": 65}, lambda c: c.head_dim, "hidden_size is 65, expected a mult"),
        (
            LLAMA | {"num_key_value_heads": 3},
            lambda c: c.num_key_value_heads,
            "num_attention_heads is 4, expected a multiple of num_key_value_heads, 3",
        ),
        ({"n": "x" * 1000}, lambda c: c.get_int("n"), r"n is 'x{1,80}, expected"),
    ],
)
def test_what_cannot_be(values: dict[str, Any], get: Get, says: str):
    with pytest.raises(ModelFormatError, match=says):
        get(config(**values))


@pytest.mark.parametrize(
    ("values", "get", "says"),
    [
        (
            {"hidden_act": "mish"},
            lambda c: c.get_activation(),
            "model: hidden_act is 'mish', which cannot be exported; supported: gelu, ",
        ),
        (
            {"v": ["a", "c"]},
            lambda c: c.get_strs("v", 2, ("a", "b")),
            "model: v has 'c'; supported: a, b",
        ),
        ({"b": True}, lambda c: c.require("b", False), "b is True, .*; supported: False"),
        ({"k": "x"}, lambda c: c.require("k", "y", "z"), "k is 'x', .*; supported: 'y', 'z'"),
        ({"k": 1}, lambda c: c.require("k"), "k is 1, .*; supported: only models without it"),
    ],
)
def test_what_is_not_built(values: dict[str, Any], get: Get, says: str):
    with pytest.raises(UnsupportedModelError, match=says):
        get(config(**values))


@pytest.mark.parametrize("values", [{}, {"b": None}, {"b": False}])
def test_a_field_that_asks_for_nothing_is_let_pass(values: dict[str, Any]):
    config(**values).require("b", False)
