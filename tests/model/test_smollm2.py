"""SmolLM2-135M: transformers' tokens, fidelity at the defaults, memory, and the plugin's fusions.

The records come from tests/oracles/smollm2_reference.py.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TypeAlias

import numpy as np
import openvino as ov
import pytest

from ovgen.engine.batch import ScheduledBatch, ScheduledSequence
from ovgen.engine.sequence import Request, Sequence
from ovgen.engine_config import EngineConfig
from ovgen.llm import LLM
from ovgen.model.loader import load_model
from ovgen.model.paged_model import load_paged_model
from ovgen.model.paged_runner import PagedRunner
from ovgen.model.stateful_runner import StatefulRunner

pytestmark = pytest.mark.model

DATA = Path(__file__).parents[1] / "data"
GREEDY = json.loads((DATA / "smollm2_greedy.json").read_text(encoding="utf-8"))["records"]
NUM_LAYERS = 30


Runner: TypeAlias = StatefulRunner | PagedRunner


def load_runner(folder: Path, config: EngineConfig, *, is_paged: bool = False) -> Runner:
    if is_paged:
        return PagedRunner(load_paged_model(folder, config, 32), max_running_requests=1)
    loaded = load_model(folder, config, None)
    return StatefulRunner(loaded.compiled, loaded.weights, head=loaded.head)


def all_log_probs(runner: Runner, windows: np.ndarray) -> np.ndarray:
    """Log-probabilities at every position of the windows, [windows, length, vocab] float32."""
    length = windows.shape[1]
    rows = []
    for number, window in enumerate(windows):
        sequence = Sequence(number, tuple(window.tolist()))
        sequence.block_table = list(range(32))
        request = Request(number, sequence.prompt_token_ids, 1, frozenset(), None, [sequence])
        scheduled = ScheduledSequence(request, sequence, length, length)
        runner.start(ScheduledBatch((scheduled,)))
        logits = None
        while logits is None:
            logits = runner.wait(1.0)
        rows.append(log_softmax(logits))
    return np.stack(rows)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def bucketed_kl(record: dict[str, np.ndarray], other: np.ndarray) -> np.ndarray:
    """KL(reference || other) over the recorded top tokens and one bucket for all others."""
    top = record["top_logprobs"].astype(np.float64)
    other_top = np.take_along_axis(other, record["top_ids"].astype(np.int64), -1)
    rest = record["rest"].astype(np.float64)
    other_rest = np.maximum(1 - np.exp(other_top.astype(np.float64)).sum(-1), 1e-9)
    return (np.exp(top) * (top - other_top)).sum(-1) + rest * np.log(rest / other_rest)


def hidden_kl(record: dict[str, np.ndarray], other: np.ndarray) -> np.ndarray:
    """What the bucket hides, estimated from the tokens that were drawn from it."""
    rest = record["rest"].astype(np.float64)
    other_top = np.take_along_axis(other, record["top_ids"].astype(np.int64), -1)
    other_rest = np.maximum(1 - np.exp(other_top.astype(np.float64)).sum(-1), 1e-9)
    other_tail = np.take_along_axis(other, record["tail_ids"].astype(np.int64), -1)
    ratio = record["tail_logprobs"].astype(np.float64) - other_tail
    return rest * (ratio.mean(-1) - np.log(rest / other_rest))


def perplexity(next_logprobs: np.ndarray) -> float:
    return float(np.exp(-next_logprobs.astype(np.float64).mean()))


def fidelity(runner: Runner) -> tuple[float, float, float]:
    """Mean bucketed KL, mean estimated KL, and perplexity over the reference's."""
    with np.load(DATA / "smollm2_kl.npz") as file:
        record = dict(file)
    windows = record["token_ids"].astype(np.int64)
    other = all_log_probs(runner, windows)
    kl = bucketed_kl(record, other)
    mine = np.take_along_axis(other[:, :-1], windows[:, 1:, None], -1)
    ratio = perplexity(mine) / perplexity(record["next_logprobs"])
    return float(kl.mean()), float((kl + hidden_kl(record, other)).mean()), ratio


def test_transformers_greedy_tokens(smollm2_exact_folder: Path):
    with LLM(smollm2_exact_folder, precision="exact") as llm:
        assert len(GREEDY) == 8
        for record in GREEDY:
            output = llm.generate(record["ids"], max_new_tokens=64, ignore_eos=True)
            assert list(output.token_ids) == record["tokens"], record["name"]
            assert llm.tokenizer.encode(record["text"]) == record["ids"]


def test_exact_is_the_reference(smollm2_exact_folder: Path):
    runner = load_runner(smollm2_exact_folder, EngineConfig(precision="exact"))
    bucketed, estimated, ratio = fidelity(runner)
    print(f"\nexact: KL {bucketed:.6f} (estimated {estimated:.6f}), perplexity x {ratio:.5f}")
    assert estimated < 1e-4
    assert ratio == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("is_paged", [False, True])
def test_fidelity_of_the_defaults(smollm2_folder: Path, is_paged: bool):
    runner = load_runner(smollm2_folder, EngineConfig(), is_paged=is_paged)
    bucketed, estimated, ratio = fidelity(runner)
    print(f"\ndefaults: KL {bucketed:.5f} (estimated {estimated:.5f}), perplexity x {ratio:.4f}")
    assert estimated < 0.005
    assert ratio == pytest.approx(1, abs=0.01)


@pytest.fixture(scope="module")
def runtime_ops(smollm2_folder: Path) -> list[ov.Node]:
    """The nodes that the CPU plugin really runs."""
    loaded = load_model(smollm2_folder, EngineConfig(), None)
    parts = [loaded.compiled] + ([loaded.head] if loaded.head else [])
    return [node for part in parts for node in part.get_runtime_model().get_ordered_ops()]


def layer_type(node: ov.Node) -> str:
    return node.get_rt_info()["layerType"].astype(str)


def weight_matmuls(nodes: list[ov.Node]) -> list[ov.Node]:
    """The fully-connected ones with weights; that of positions and rotary frequencies is tiny."""
    linear = [node for node in nodes if layer_type(node) == "FullyConnected"]
    return [node for node in linear if math.prod(node.input_value(1).get_shape()) > 1000]


def test_the_plugins_fusions(runtime_ops: list[ov.Node]):
    counts = Counter(map(layer_type, runtime_ops))
    assert counts["ScaledDotProductAttention"] == NUM_LAYERS
    assert counts["Concatenation"] < NUM_LAYERS  # it appends to the KV cache itself
    assert counts["RoPE"] == 2 * NUM_LAYERS
    assert counts["RMS"] == 2 * NUM_LAYERS + 1
    assert len(weight_matmuls(runtime_ops)) == 5 * NUM_LAYERS + 1  # QKV in one
    assert counts["MatMul"] == 0


def test_all_weights_stay_compressed(runtime_ops: list[ov.Node]):
    types = {
        node.input_value(1).get_element_type().get_type_name()
        for node in weight_matmuls(runtime_ops)
    }
    assert types <= {"i8", "u8", "i4", "u4"}


LEAK = """
import sys
import numpy as np
from ovgen import LLM

def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

with LLM(sys.argv[1]) as llm:
    sizes = []
    for number in range(230):
        prompt = [5 + number % 50] * (4 + number % 12)
        llm.generate(prompt, max_new_tokens=3, ignore_eos=True)
        sizes.append(rss())
print(np.polyfit(np.arange(200), sizes[30:], 1)[0])
"""

CLOSE = """
import sys
from ovgen import LLM

def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

llm = LLM(sys.argv[1])
llm.generate("The capital of France is", max_new_tokens=16, ignore_eos=True)
before = rss()
llm.close()
print(before - rss())
"""


def run_script(code: str, folder: Path) -> float:
    arguments = [sys.executable, "-c", code, str(folder)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=400)
    return float(result.stdout)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_no_growth_over_200_generates(smollm2_folder: Path):
    slope = run_script(LEAK, smollm2_folder)
    print(f"\n{slope:.0f} bytes a generate")
    assert slope < 12_000  # where each leaks 50 kB it is 24,000: the heap's gaps take up the rest


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_close_gives_the_weights_back(smollm2_folder: Path, ovgen_home: Path):
    size = (smollm2_folder / "openvino_model.bin").stat().st_size
    for way in ("compiled", "from the cache"):
        freed = run_script(CLOSE, smollm2_folder)
        print(f"\n{way}: {freed / 1e6:.0f} MB freed, the weights have {size / 1e6:.0f} MB")
        assert freed >= size
        assert os.listdir(ovgen_home / "compiled")
