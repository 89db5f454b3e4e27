"""SmolLM2 beside its own values: as far away as from what transformers has recorded for them.

The record comes from tests/oracles/smollm2_reference.py: the likeliest 128 tokens and a sum.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ovgen import LLM
from ovgen.evaluation.divergence import CHUNK, Reference, compare, reference

pytestmark = pytest.mark.model

DATA = Path(__file__).parents[1] / "data"
load = partial(LLM, profile="none", attention_backend="stateful", token_budget=CHUNK)


@pytest.fixture(scope="module")
def record() -> dict[str, np.ndarray]:
    with np.load(DATA / "smollm2_kl.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def windows(record) -> list[list[int]]:
    return record["token_ids"].tolist()


@pytest.fixture(scope="module")
def recorded(record) -> Reference:
    """Transformers' predictions for all tokens but a window's last, which has no next one."""
    rows = {name: values[:, :-1].reshape(-1, *values.shape[2:]) for name, values in record.items()
            if name in ("top_ids", "top_logprobs", "rest")}  # fmt: skip
    ids = rows["top_ids"].astype(np.int32)
    best = np.take_along_axis(ids, rows["top_logprobs"].argmax(1)[:, None], 1)[:, 0]
    next_logprobs = record["next_logprobs"].reshape(-1).astype(np.float64)
    return Reference(
        ids, rows["top_logprobs"].astype(np.float32), rows["rest"], best, next_logprobs
    )


@pytest.fixture(scope="module")
def expected(smollm2_exact_folder: Path, windows) -> Reference:
    with load(smollm2_exact_folder, precision="exact") as llm:
        return reference(llm, windows, 1 << 16)


def test_the_reference_is_transformers(expected, recorded):
    assert expected.ids.shape == (2044, 49152)
    assert expected.next_logprobs == pytest.approx(recorded.next_logprobs, abs=2e-3)
    assert math.exp(-expected.next_logprobs.mean()) == pytest.approx(9.92, abs=0.01)
    assert (expected.best == recorded.best).mean() > 0.995  # float16 makes ties


def test_the_figures_are_those_of_transformers_record(
    smollm2_folder: Path, windows, expected, recorded
):
    with load(smollm2_folder) as llm:
        found = compare(expected, llm, windows)
        beside_record = compare(recorded, llm, windows)
    print(f"\n{found.mean_kl:.5f} {beside_record.mean_kl:.5f} {found.has_same_best.mean():.4f}")
    assert found.mean_kl < 0.006
    assert beside_record.mean_kl == pytest.approx(found.mean_kl, rel=0.1)
    assert math.exp(-found.next_logprobs.mean()) == pytest.approx(9.92, rel=0.015)
    assert found.has_same_best.mean() > 0.95
