"""Options of a tuning; tests/cli/test_tune.py has it do its work."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovgen import ConfigError
from ovgen.evaluation.passage import PASSAGE
from ovgen.tuning.tune import tune

LLAMA = Path(__file__).parents[1] / "fixtures" / "tiny" / "llama"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("goal", "speed"),
        ("goal", None),
        ("max_kl", 0),
        ("max_kl", -1),
        ("max_kl", float("nan")),
        ("max_kl", float("inf")),
        ("max_kl", "0.01"),
        ("max_kl", True),
        ("rounds", 0),
        ("rounds", 1.5),
        ("rounds", True),
    ],
)
def test_options_out_of_range(name: str, value: object):
    with pytest.raises(ConfigError, match=name):
        tune(LLAMA, **{name: value})


def test_the_passage_is_plain_prose():
    assert PASSAGE.isascii()
    assert 350 < len(PASSAGE.split()) < 450
