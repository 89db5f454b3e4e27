"""The search over a bench with scripted figures."""

from __future__ import annotations

import math

import pytest

from ovgen.errors import DeviceError
from ovgen.tuning.candidates import Stage
from ovgen.tuning.search import Sample, Search

P, G, K, T = (
    "INFERENCE_PRECISION_HINT",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "KV_CACHE_PRECISION",
    "INFERENCE_NUM_THREADS",
)
DEFAULT = {P: "f32"}


def key(properties):
    return " ".join(properties.values())


class FakeBench:
    """``speeds``: the time of an answer by properties, or one a sample. ``kl``: by properties."""

    def __init__(self, speeds, kl=None):
        self.speeds, self.kl = speeds, kl or {}
        self.sampled, self.compared = [], []

    def divergence(self, properties):
        self.compared.append(key(properties))
        value = self.kl.get(key(properties), 0.001)
        if isinstance(value, Exception):
            raise value
        return value

    def sample(self, properties):
        name = key(properties)
        self.sampled.append(name)
        value = self.speeds[name]
        if isinstance(value, list):
            value = value[(self.sampled.count(name) - 1) % len(value)]
        if isinstance(value, Exception):
            raise value
        return Sample(ttft=value, tpot=0.0, throughput=1 / value)


def search(bench, *stages, goal="latency", max_kl=0.01, rounds=3, told=None):
    told = [] if told is None else told
    found = Search(bench, DEFAULT, goal=goal, max_kl=max_kl, rounds=rounds, progress=told.append)
    named = [
        Stage(f"stage {n}", lambda best, change=change: [{**best, **c} for c in change])
        for n, change in enumerate(stages)
    ]
    return found, found.run(named)


def verdicts(found):
    return {key(trial.properties): trial.verdict for trial in found.trials}


@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_each_stage_goes_on_from_the_best_before(goal):
    bench = FakeBench({"f32": 1, "bf16": 0.8, "f16": 0.9, "bf16 u8": 0.8, "bf16 4": 0.5})
    found, best = search(bench, [{P: "bf16"}, {P: "f16"}], [{K: "u8"}], [{T: "4"}], goal=goal)
    assert best is not None
    assert (best.properties, best.ratio) == ({P: "bf16", T: "4"}, 0.5)
    assert verdicts(found) == {
        "f32": "slower (built-in rule)",
        "bf16": "slower",
        "f16": "slower",
        "bf16 u8": "slower",
        "bf16 4": "best",
    }


def test_gaps_within_noise_change_nothing():
    found, best = search(FakeBench({"f32": 1, "bf16": 0.98}), [{P: "bf16"}])
    assert best is found.trials[0]
    assert verdicts(found) == {"f32": "best (built-in rule)", "bf16": "no gain"}


def test_a_candidate_is_compared_within_its_round():
    """The machine becomes three times as slow in the second round."""
    bench = FakeBench({"f32": [1, 1, 3, 3], "bf16": [0.8, 2.4]})
    _, best = search(bench, [{P: "bf16"}], rounds=3)
    assert best is not None
    assert best.ratio == pytest.approx(0.8)


def test_medians_take_no_notice_of_one_bad_round():
    bench = FakeBench({"f32": 1, "bf16": [0.8, 0.9, 0.8]})
    _, best = search(bench, [{P: "bf16"}])
    assert (best.ratio, best.sample.ttft) == (0.8, 0.8)


def test_the_hopeless_are_measured_once():
    bench = FakeBench({"f32": 1, "bf16": 1.1, "f16": 1.2})
    search(bench, [{P: "bf16"}, {P: "f16"}])
    assert [bench.sampled.count(name) for name in ("bf16", "f16")] == [3, 1]


def test_rounds_go_to_and_fro():
    bench = FakeBench({"f32": 1, "bf16": 1, "f16": 1})
    search(bench, [{P: "bf16"}, {P: "f16"}], rounds=2)
    assert bench.sampled == ["f32", "f32", "bf16", "f16", "f32", "f16", "bf16"]


@pytest.mark.parametrize("kl", [0.02, math.nan, math.inf])
def test_what_is_not_accurate_is_not_timed(kl):
    bench = FakeBench({"f32": 1}, {"bf16": kl})
    found, best = search(bench, [{P: "bf16"}])
    assert best is found.trials[0]
    assert verdicts(found)["bf16"] == "KL too high"


def test_accuracy_is_measured_once_for_what_it_depends_on():
    bench = FakeBench({"f32": 1, "f32 2": 1, "f32 4": 1})
    search(bench, [{T: "2"}, {T: "4"}])
    assert bench.compared == ["f32"]


def test_an_inaccurate_rule_gives_way_to_what_is_slower():
    bench = FakeBench({"f32": 1, "bf16": 1.5, "f16": 1.3}, {"f32": 0.1})
    found, best = search(bench, [{P: "bf16"}, {P: "f16"}])
    assert best.properties == {P: "f16"}
    assert verdicts(found)["f32"] == "KL too high (built-in rule)"


def test_the_nearest_leads_to_the_accurate_one():
    bench = FakeBench({"f32": 1, "bf16 f32": 2}, {"f32": 0.3, "bf16": 0.1, "f16": 0.2})
    _, best = search(bench, [{P: "bf16"}, {P: "f16"}], [{K: "f32"}])
    assert best.properties == {P: "bf16", K: "f32"}


def test_nothing_is_accurate():
    bench = FakeBench({"f32": 1}, {"f32": 0.3, "bf16": 0.1})
    assert search(bench, [{P: "bf16"}])[1] is None


def test_what_the_device_refuses_is_left_out():
    refusal = DeviceError("no f16 here")
    bench = FakeBench({"f32": 1, "bf16": [0.5, refusal]}, {"f16": refusal})
    found, best = search(bench, [{P: "bf16"}, {P: "f16"}])
    assert best is found.trials[0]
    assert verdicts(found)["bf16"] == verdicts(found)["f16"] == "refused by the device"


@pytest.mark.parametrize("where", ["kl", "time"])
def test_the_device_refuses_the_rule_itself(where):
    error = DeviceError("no such device")
    speeds, kl = ({"f32": error}, {}) if where == "time" else ({"f32": 1}, {"f32": error})
    with pytest.raises(DeviceError, match="no such device"):
        search(FakeBench(speeds, kl), [{P: "bf16"}])


def test_what_only_seemed_faster_gives_way_to_the_rule():
    bench = FakeBench({"f32": 1, "bf16": [0.5, 0.5, 0.5, 2, 2, 2], "bf16 u8": 3})
    found, best = search(bench, [{P: "bf16"}], [{K: "u8"}])
    assert best is found.trials[0]


def test_nothing_to_choose():
    found, best = search(FakeBench({"f32": 2}), [])
    assert best is found.trials[0]
    assert found._bench.sampled == ["f32"]
    assert best.figures() == {"ttft": 2, "tpot": 0, "throughput": 0.5, "kl": 0.001, "ratio": 1}


def test_progress():
    told = []
    search(FakeBench({"f32": 1, "bf16": 1}), [{P: "bf16"}], rounds=1, told=told)
    assert told[-1] == "stage 0, round 1 of 1: precision=bf16"
    assert told[0] == "accuracy of precision=f32"
