"""The outcome as text and as JSON, and the machine that it comes from."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import ovgen
from ovgen.bench.engines import OWN, PEERS, Engine
from ovgen.bench.figures import MEMORY, THROUGHPUT, TTFT, Figure, Samples
from ovgen.bench.machine import machine
from ovgen.bench.report import Report, formatted

TIME = Figure(TTFT, "32 tokens", "s")
PEAK = Figure(MEMORY, "loaded", "bytes")
ENGINES = [
    Engine("ovgen", OWN, "/p/python", "3.11.1", {"openvino": "2026.4"}),
    Engine(
        "llama.cpp", PEERS["llama.cpp"], "/q/python", "3.12.2", {"llama-cpp-python": "0.3"},
    ),
]  # fmt: skip
MACHINE = {"processor": "Z80", "cores": 1, "memory": 1 << 30, "load": 0.1, "platform": "CP/M"}


def make_report(engines=ENGINES, rounds=3):
    samples = Samples()
    for value in (0.01, 0.03, 0.02):
        for engine in engines:
            samples.add(TIME, engine.name, value * (2 if engine.name != "ovgen" else 1))
    samples.add(PEAK, "ovgen", 2.5e9)
    settings = {"rounds": rounds, "workloads": ["latency", "throughput"]}
    return Report("tiny", settings, MACHINE, engines, samples, {"ovgen": {"attention": "paged"}})


def test_header():
    header = dict(make_report().header())
    assert header["machine"] == "Z80, 1 cores, 1 GiB, CP/M"
    assert header["ovgen"] == (
        f"ovgen {ovgen.__version__}, openvino 2026.4, Python 3.11.1, paged attention"
    )
    assert header["llama.cpp"] == "llama-cpp-python 0.3, Python 3.12.2"
    assert "above 1 ovgen is ahead" in header["RATIO"]
    assert "RATIO" not in dict(make_report(ENGINES[:1]).header())


def test_table():
    assert make_report().rows() == [
        ["FIGURE", "AT", "OVGEN", "LLAMA.CPP", "RATIO"],
        ["TTFT", "32 tokens", "20.0 ms", "40.0 ms", "2.00"],
        ["peak memory", "loaded", "2,500 MB", "-", "-"],
    ]


def test_notes():
    assert make_report().notes() == [
        "Medians of 3 rounds.",
        "Throughput of llama.cpp: one request after another, the first 8 at most.",
    ]
    assert make_report(ENGINES[:1], rounds=1).notes() == ["One round alone."]


def test_a_machine_that_was_busy():
    report = replace(make_report(), machine={**MACHINE, "load": 0.6})
    assert report.notes()[1] == "The machine was busy beforehand (load 0.6): expect noise."
    assert len(replace(report, machine={**MACHINE, "load": None}).notes()) == 2


def test_json_has_every_round():
    told = json.loads(json.dumps(make_report().to_json()))
    time, peak = told["figures"]
    assert time == {
        "figure": "TTFT",
        "at": "32 tokens",
        "unit": "s",
        "better": "lower",
        "medians": {"ovgen": 0.02, "llama.cpp": 0.04},
        "ratios": {"llama.cpp": 2.0},
        "rounds": {"ovgen": [0.01, 0.03, 0.02], "llama.cpp": [0.02, 0.06, 0.04]},
    }
    assert peak["medians"] == {"ovgen": 2.5e9}
    assert told["engines"]["llama.cpp"]["interpreter"] == "/q/python"
    assert told["machine"] == MACHINE


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.00634, "s", "6.3 ms"),
        (1.2345, "s", "1,234 ms"),
        (12.34, "tokens/s", "12.3 tokens/s"),
        (1234.5, "tokens/s", "1,234 tokens/s"),
        (768e6, "bytes", "768 MB"),
    ],
)
def test_units(value, unit, text):
    assert formatted(value, unit) == text


def test_this_machine(monkeypatch):
    told = machine()
    assert told["processor"]
    assert told["cores"] >= 1
    assert told["memory"] > 1 << 20
    monkeypatch.delattr("os.sysconf")  # as on Windows
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_: (_ for _ in ()).throw(OSError()))
    told = machine()
    assert told["memory"] is None
    assert told["processor"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "model name\t: X\nflags\t\t: fpu avx2 amx_tile\n\nmodel name\t: Y\n",
            "X (avx2, amx_tile)",
        ),
        ("processor\t: 0\nFeatures\t: fp asimddp\n", None),
        ("", None),
    ],
)
def test_processors(monkeypatch, text, name):
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_: text)
    assert machine()["processor"] == name or (name is None and machine()["processor"])


def test_throughput_is_better_when_higher():
    assert not Figure(THROUGHPUT, "", "tokens/s").is_better_when_lower
