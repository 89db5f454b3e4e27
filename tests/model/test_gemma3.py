"""gemma-3-270m from its GGUF file: transformers' tokens and distributions.

The records come from tests/oracles/gemma3_reference.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ovgen.engine_config import EngineConfig
from ovgen.export.exporter import export_model
from ovgen.llm import LLM
from ovgen.model.loader import load_model

pytestmark = pytest.mark.model

DATA = Path(__file__).parents[1] / "data"
RECORD = json.loads((DATA / "gemma3_reference.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def exact_folder(gemma3_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ir") / "gemma3-exact"
    return export_model(gemma3_gguf, folder, weights="exact")


@pytest.fixture(scope="module")
def auto_folder(gemma3_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(gemma3_gguf, tmp_path_factory.mktemp("ir") / "gemma3")


def divergence(folder: Path, config: EngineConfig) -> np.ndarray:
    """KL of the recorded distributions to ours, over the best tokens and one bucket for the rest.

    The text is longer than the window of the attention that slides.
    """
    loaded = load_model(folder, config, None)
    length, step = len(RECORD["long"]), RECORD["step"]
    feed = {
        "input_ids": np.array([RECORD["long"]]),
        "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(length)[None],
        "beam_idx": np.zeros(1, np.int32),
        "sampled_tokens_indices": np.arange(step - 1, length, step),
    }
    outputs = loaded.compiled(feed)[0]
    if loaded.head is not None:
        outputs = loaded.head(outputs)[0]
    logits = outputs[0].astype(np.float64)
    ours = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    with np.load(DATA / "gemma3_reference.npz") as arrays:
        ids, theirs = arrays["ids"].astype(np.int64), arrays["logprobs"].astype(np.float64)
    ours = np.take_along_axis(ours, ids, -1)
    rest, other_rest = (1 - np.exp(rows).sum(-1) for rows in (theirs, ours))
    kept = (np.exp(theirs) * (theirs - ours)).sum(-1)
    return np.asarray(kept + rest * np.log(rest / other_rest))


def test_exact_weights_give_transformers_distributions(exact_folder: Path):
    found = divergence(exact_folder, EngineConfig(precision="exact"))
    assert len(found) == 35
    assert np.median(found) < 1e-9
    assert found.max() < 1e-8


@pytest.mark.parametrize("backend", ["stateful", "paged"])
def test_exact_weights_give_transformers_tokens(exact_folder: Path, backend: str):
    with LLM(exact_folder, precision="exact", attention_backend=backend) as llm:
        outputs = llm.generate(RECORD["prompts"], max_new_tokens=len(RECORD["greedy"][0]))
        assert [list(output.token_ids) for output in outputs] == RECORD["greedy"]
        assert [llm.tokenizer.encode(text) for text in RECORD["texts"]] == RECORD["prompts"]


def test_the_defaults_stay_close(auto_folder: Path):
    assert divergence(auto_folder, EngineConfig()).mean() < 0.005
