"""The bench over a stand-in for the LLM, and over a tiny model."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ovgen import LLM, RequestError, UnsupportedModelError
from ovgen.tuning import model_bench
from ovgen.tuning.model_bench import ModelBench

LLAMA = Path(__file__).parents[1] / "fixtures" / "tiny" / "llama"
TEXT = " ".join(str(number) for number in range(400))


class FakeLLM:
    """Records how it was loaded and what it was asked; takes a tenth of a second for a token."""

    loads: list[dict[str, object]]
    context_length = 4096
    is_paged = True

    def __init__(self, folder, device, precision="default", **options):
        if options["attention_backend"] == "paged" and not self.is_paged:
            raise UnsupportedModelError("no")
        self.attention_backend = options["attention_backend"]
        self.requests = []
        self.options = {"precision": precision, **options, "requests": self.requests}
        FakeLLM.loads.append(self.options)
        self.tokenizer = SimpleNamespace(encode=lambda text: list(map(int, text.split())))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.options["is_closed"] = True

    def generate(self, prompt, *, max_new_tokens, ignore_eos):
        assert ignore_eos
        self.requests.append((prompt, max_new_tokens))
        metrics = SimpleNamespace(
            ttft=0.1 * len(self.requests), tpot=0.2, prefill_tokens_per_s=100 * len(self.requests)
        )
        output = SimpleNamespace(metrics=metrics, token_ids=(1,) * max_new_tokens)
        return [output] * len(prompt) if isinstance(prompt[0], list) else output


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch):
    FakeLLM.loads = []
    monkeypatch.setattr(model_bench, "LLM", FakeLLM)
    monkeypatch.setattr(model_bench, "reference", lambda llm, windows: windows)
    monkeypatch.setattr(
        model_bench, "compare", lambda expected, llm, windows: SimpleNamespace(mean_kl=0.5)
    )
    monkeypatch.setattr(FakeLLM, "is_paged", True)
    return FakeLLM.loads


def test_loads(loads):
    bench = ModelBench(LLAMA, "CPU", TEXT)
    bench.divergence({"KV_CACHE_PRECISION": "f32"})
    bench.sample({"KV_CACHE_PRECISION": "f32"})
    exact, accuracy, speed = loads
    assert (exact["precision"], accuracy["precision"]) == ("exact", "default")
    for load in loads:
        assert load["is_closed"]
        assert load["properties"]["CACHE_DIR"] == ""  # nothing is left on the disk
        assert (load["attention_backend"], load["prefix_caching"]) == ("paged", False)
    for load in (accuracy, speed):
        assert load["properties"]["KV_CACHE_PRECISION"] == "f32"
        assert load["profile"] == "none"
    # Accuracy is read in chunks, so that the KV cache is used; times at what a load does by itself.
    assert exact["token_budget"] == accuracy["token_budget"] == model_bench.CHUNK
    assert speed["token_budget"] is None


def test_windows_cover_the_text(loads):
    bench = ModelBench(LLAMA, "CPU", " ".join(["7"] * 1025))
    assert [len(window) for window in bench._windows] == [512, 512]  # one token predicts nothing
    bench = ModelBench(LLAMA, "CPU", " ".join(["7"] * 9999))
    assert sum(len(window) for window in bench._windows) == model_bench.MAX_TEXT


def test_a_sample_of_a_paged_model(loads):
    sample = ModelBench(LLAMA, "CPU", TEXT).sample({})
    *single, warming, (prompts, output) = loads[-1]["requests"]
    assert [len(prompt) for prompt, _ in single] == [256] * 4
    assert len({prompt[0] for prompt, _ in single}) == 4
    assert len(warming[0]) == len(prompts) == 16
    assert {len(prompt) for prompt in prompts} == {64}
    assert output == 32
    assert (sample.ttft, sample.tpot) == (pytest.approx(0.3), 0.2)  # the warm-up is left out
    assert sample.throughput > 1000  # this LLM takes no time


def test_a_sample_of_a_stateful_model(loads, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FakeLLM, "is_paged", False)
    sample = ModelBench(LLAMA, "CPU", TEXT).sample({})
    assert {load["attention_backend"] for load in loads} == {"stateful"}
    assert sample.throughput == 300  # of prompt tokens
    assert len(loads[-1]["requests"]) == 4


def test_other_devices_are_served_by_the_stateful_graph(loads):
    ModelBench(LLAMA, "GPU", TEXT)
    assert [load["attention_backend"] for load in loads] == ["stateful"]


def test_a_short_context(loads, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FakeLLM, "context_length", 64)
    ModelBench(LLAMA, "CPU", TEXT).sample({})
    assert {(len(prompt), new) for prompt, new in loads[-1]["requests"][1:4]} == {(32, 16)}


@pytest.mark.parametrize("text", ["", "7"])
def test_a_text_that_predicts_nothing(loads, text: str):
    with pytest.raises(RequestError, match="fewer than two tokens"):
        ModelBench(LLAMA, "CPU", text)


def test_a_real_one(tmp_path: Path):
    folder = Path(shutil.copytree(LLAMA, tmp_path / "llama"))
    bench = ModelBench(folder, "CPU", "The harbour at the mouth of the river. " * 5)
    assert 0 <= bench.divergence({"KV_CACHE_PRECISION": "f32"}) < 0.1
    sample = bench.sample({"INFERENCE_NUM_THREADS": "1"})
    assert min(sample.ttft, sample.tpot, sample.throughput) > 0
    assert LLM is model_bench.LLM
