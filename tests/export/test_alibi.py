"""ALiBi's slopes against transformers' (tests/oracles/alibi_slopes.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovgen.export.alibi import alibi_slopes, mpt_slopes

SLOPES = json.loads((Path(__file__).parents[1] / "data" / "alibi_slopes.json").read_text())


@pytest.mark.parametrize("heads", [int(count) for count in SLOPES["bloom"]])
def test_slopes_of_any_number_of_heads(heads: int):
    assert alibi_slopes(heads) == pytest.approx(SLOPES["bloom"][str(heads)], rel=1e-5)
    assert mpt_slopes(heads, 8) == pytest.approx(SLOPES["mpt"][str(heads)], rel=1e-5)
    assert mpt_slopes(heads, 4) == pytest.approx(SLOPES["mpt_4"][str(heads)], rel=1e-5)
