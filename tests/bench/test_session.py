"""Rounds over engines that are imagined."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ovgen.bench.figures import CHAT, GROUPS, MEMORY, START, THROUGHPUT, TTFT, Figure
from ovgen.bench.session import Options, Session
from ovgen.bench.workloads import WORKLOADS
from ovgen.errors import OvgenError, StorageError


@pytest.fixture
def options(tmp_path):
    return Options(
        folder=tmp_path / "ir",
        gguf=None,
        device="CPU",
        workloads=WORKLOADS,
        rounds=2,
        timeout=30,
        home=tmp_path / "home",
    )


@pytest.fixture
def run(fake, options):
    """Measure ovgen and a peer that is twice as fast, and one that serves one at a time."""

    def measure(*workloads, **changes):
        changed = replace(options, workloads=workloads, **changes)
        peer = replace(fake("genai", speed=2.0), properties={"A": "1"})
        engines = [fake("ovgen"), peer, fake("llama.cpp")]
        return Session(engines, changed, lambda line: None).run()

    return measure


def test_engines_take_turns(run, fakes):
    run("latency")
    lines = fakes.log()
    assert lines[:3] == ["ovgen load 2304 {}", 'genai load 2304 {"A": "1"}',
                         "llama.cpp load 2304 {}"]  # fmt: skip
    warm_up, rounds = lines[3:12], lines[12:]
    assert {line.split()[1] for line in warm_up} == {"one"}
    names = [line.split()[0] for line in rounds]
    assert names == ["ovgen", "genai", "llama.cpp"] * 3 + ["genai", "llama.cpp", "ovgen"] * 3
    lengths = [int(line.split()[2]) for line in rounds]
    assert lengths == [32] * 3 + [512] * 3 + [2048] * 3 + [32] * 3 + [512] * 3 + [2048] * 3


def test_all_workloads(run):
    samples = run(*WORKLOADS)
    assert [*dict.fromkeys(figure.group for figure in samples.figures)] == list(GROUPS)
    first = Figure(TTFT, "512 tokens", "s")
    assert samples.rounds(first) == {
        "ovgen": [0.512] * 2, "genai": [0.256] * 2, "llama.cpp": [0.512] * 2,
    }  # fmt: skip
    assert samples.ratio(first, "genai") == 0.5
    rate = Figure(THROUGHPUT, "64 at a time", "tokens/s")
    assert samples.ratio(rate, "genai") == pytest.approx(0.5)
    starts = {figure.label: samples.rounds(figure) for figure in samples.figures
              if figure.group == START}  # fmt: skip
    assert [len(values) for values in starts["empty caches"].values()] == [1, 1, 1]
    assert [len(values) for values in starts["full caches"].values()] == [2, 2, 2]
    assert all(len(samples.rounds(figure)) == 3 for figure in samples.figures)


def test_requests_of_an_engine_that_serves_one_at_a_time(run, fakes):
    run("throughput", rounds=1)
    counts = {name: [] for name in ("ovgen", "genai", "llama.cpp")}
    for name, job, count in (line.split() for line in fakes.log() if " many " in line):
        assert job == "many"
        counts[name].append(int(count))
    assert counts == {"ovgen": [4, 1, 4, 16, 64], "genai": [4, 1, 4, 16, 64],
                      "llama.cpp": [4, 1, 4, 8, 8]}  # fmt: skip


def test_memory_alone_runs_what_takes_most(run, fakes):
    samples = run("memory")
    assert [(figure.group, figure.label) for figure in samples.figures] == [
        (MEMORY, "loaded"), (MEMORY, "after latency"), (MEMORY, "after throughput"),
    ]  # fmt: skip
    own = [line for line in fakes.log() if line.startswith("ovgen") and "load" not in line]
    assert own == ["ovgen one 2048 64", "ovgen many 64"]


def test_prefix_alone(run):
    samples = run("prefix")
    assert {figure.group for figure in samples.figures} == {CHAT}


def test_starts_alone_load_no_peer_beforehand(run, fakes, tmp_path):
    run("start", rounds=1)
    assert [line.split()[0] for line in fakes.log() if " load " in line] == [
        "ovgen", "ovgen", "genai", "llama.cpp", "genai", "llama.cpp", "ovgen",
    ]  # fmt: skip
    assert list((tmp_path / "home").iterdir()) == []


def test_what_the_engines_tell_of_themselves(fake, options):
    session = Session([fake("ovgen")], replace(options, workloads=("prefix",)), lambda line: None)
    session.run()
    assert session.facts["ovgen"]["attention"] == "imagined"


def test_progress(fake, options):
    lines = []
    Session([fake("ovgen")], replace(options, rounds=1), lines.append).run()
    assert lines[0] == "loading ovgen"
    assert "round 1 of 1: latency, 512 tokens: ovgen" in lines
    assert "start 2 of 2: ovgen" in lines


def test_a_peer_that_crashes(fake, options):
    engines = [fake("ovgen"), fake("genai", crashes_at=2)]
    with pytest.raises(OvgenError, match="genai's worker ended with exit code 3: RuntimeError"):
        Session(engines, options, lambda line: None).run()


def test_a_home_that_cannot_be_written(fake, options):
    options.home.write_text("a file")
    changed = replace(options, workloads=("start",))
    with pytest.raises(StorageError, match="cannot write to"):
        Session([fake("ovgen")], changed, lambda line: None).run()
