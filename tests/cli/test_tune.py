"""`ovgen tune`: what it measures, stores, shows and removes."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
from cli.test_interrupt import interrupt, started, wait_for

from ovgen.errors import DeviceError
from ovgen.model.device_facts import identity
from ovgen.model.profile_file import PROFILE_NAME, Profile, store_profile
from ovgen.model.trust import check_paging
from ovgen.tuning.search import Sample

FIGURES = {"ttft": 0.2, "tpot": 0.01, "throughput": 99.0, "kl": 0.002, "ratio": 0.9, "max_kl": 0.01}


class FakeBench:
    """Takes no time: bfloat16 is twice as fast as anything else, and less accurate."""

    text = None

    def __init__(self, folder, device, text):
        FakeBench.text = text

    def divergence(self, properties):
        return 0.005 if properties.get("INFERENCE_PRECISION_HINT") == "bf16" else 0.001

    def sample(self, properties):
        if "ENABLE_CPU_PINNING" in properties:
            raise DeviceError("refused")
        is_fast = properties.get("INFERENCE_PRECISION_HINT") == "bf16"
        return Sample(*((0.05, 0.005, 2000) if is_fast else (0.1, 0.01, 1000)))


@pytest.fixture
def fake_bench(monkeypatch):
    monkeypatch.setattr("ovgen.tuning.tune.ModelBench", FakeBench)
    monkeypatch.setattr("ovgen.model.compile_properties.has_amx", lambda core: False)
    monkeypatch.setattr("ovgen.model.compile_properties.platform.machine", lambda: "x86_64")
    monkeypatch.setattr("ovgen.model.device_facts._PRECISIONS", {"FP32": "bf16"})
    monkeypatch.setattr("ovgen.model.device_facts.num_cpus", lambda: 8)


def store(ir, goal="latency", properties=None, **changes):
    machine, model = identity(ir, "CPU")
    properties = properties or {"KV_CACHE_PRECISION": "bf16"}
    store_profile(ir, Profile(goal, replace(machine, **changes), model, properties, FIGURES))


@pytest.mark.usefixtures("fake_bench")
def test_table_and_profile(cli, ir):
    *lines, last = cli("tune", ir).text().splitlines()
    assert lines[0].split() == [
        "PROPERTIES", "TTFT", "TPOT", "TOKENS/S", "KL", "TIME", "VERDICT",
    ]  # fmt: skip
    told = {" ".join(line.split()) for line in lines}
    assert (
        "precision=f32 group=64 100.0 ms 10.00 ms 1,000.0 0.0010 x 1.00 slower (built-in rule)"
    ) in told
    assert "precision=bf16 50.0 ms 5.00 ms 2,000.0 0.0050 x 0.50 best" in told
    assert "precision=bf16 pinning=no - - - 0.0050 - refused by the device" in told
    assert last == f"stored in {ir / PROFILE_NAME}"
    (stored,) = json.loads((ir / PROFILE_NAME).read_text())["profiles"]
    assert (stored["goal"], stored["properties"]) == (
        "latency",
        {"INFERENCE_PRECISION_HINT": "bf16"},
    )
    assert (stored["figures"]["kl"], stored["figures"]["max_kl"]) == (0.005, 0.01)


@pytest.mark.usefixtures("fake_bench")
def test_the_bound_on_accuracy(cli, ir):
    line = next(
        line
        for line in cli("tune", ir, "--max-kl", "0.002", "--for", "throughput").text().splitlines()
        if "KL too high" in line
    )
    assert line.startswith("precision=bf16 ")
    (stored,) = json.loads((ir / PROFILE_NAME).read_text())["profiles"]
    assert stored["goal"] == "throughput"
    assert stored["properties"]["INFERENCE_PRECISION_HINT"] == "f32"


@pytest.mark.usefixtures("fake_bench")
def test_nothing_accurate_stores_nothing(cli, ir):
    result = cli("tune", ir, "--max-kl", "0.0001")
    assert result.code == 1
    assert "KL too high (built-in rule)" in result.out
    assert result.err.startswith("ovgen: no candidate is within --max-kl 0.0001, the nearest has")
    assert len(result.err.splitlines()) == 1
    assert not (ir / PROFILE_NAME).exists()


@pytest.mark.usefixtures("fake_bench")
def test_the_text_is_the_users(cli, ir, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Größe", encoding="utf-8-sig")
    cli("tune", ir, "--text", path).text()
    assert FakeBench.text == "Größe"
    cli("tune", ir).text()
    assert FakeBench.text.startswith("A public library")


@pytest.mark.parametrize(
    ("content", "told"), [(None, "No such file"), (b"\xff", "UTF-8 (byte 0)"), (b"", "two tokens")]
)
def test_a_text_of_no_use(fails, ir, tmp_path, content, told):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    check_paging(ir, "CPU")  # its record stays beside the model, whatever comes of the text
    assert told in fails("tune", ir, "--text", path)


def test_a_virtual_device(fails, ir):
    assert "stands for other devices" in fails("tune", ir, "--device", "AUTO")


def test_show(cli, ir):
    store(ir, device_name="Another")
    store(ir)
    store(ir, "throughput")
    other, latency, throughput = cli("tune", ir, "--show").text().splitlines()[1:]
    assert other.split()[:2] == latency.split()[:2] == ["latency", "kv=bf16"]
    assert other.endswith("ignored: measured with device name Another, and here it is "
                          + identity(ir, "CPU")[0].device_name)  # fmt: skip
    assert latency.endswith("  used with profile='latency'")
    assert throughput.endswith("  x 0.90  used")
    assert "200.0 ms  10.00 ms      99.0  0.0020" in latency


def test_show_nothing(cli, ir):
    assert cli("tune", ir, "--show").text() == f"{ir} has no profile of this version of ovgen\n"


def test_show_a_damaged_one(cli, ir):
    (ir / PROFILE_NAME).write_text("{")
    assert "--reset" in cli("tune", ir, "--show").one_error_line()


def test_reset(cli, ir):
    (ir / PROFILE_NAME).write_text("{")
    assert cli("tune", ir, "--reset").text() == f"removed {ir / PROFILE_NAME}\n"
    assert not (ir / PROFILE_NAME).exists()
    assert cli("tune", ir, "--reset").text() == f"{ir} has no profile of this version of ovgen\n"


def test_run_uses_what_is_asked_for(cli, ir):
    arguments = ("run", ir, "hello", "--raw", "--max-new-tokens", "2")
    assert "ovgen tune --for latency" in cli(*arguments, "--profile", "latency").one_error_line()
    (ir / PROFILE_NAME).write_text("{")
    assert PROFILE_NAME in cli(*arguments).one_error_line()
    assert cli(*arguments, "--profile", "none").text()


def test_ctrl_c_leaves_the_old_profile(ir, ovgen_home):
    store(ir)
    before = (ir / PROFILE_NAME).read_bytes()
    with started("tune", ir, python=("-X", "importtime")) as child:
        os.set_blocking(child.stderr.fileno(), False)
        written = b""

        def has_begun() -> bool:
            nonlocal written
            written += child.stderr.read() or b""
            return b"ovgen.evaluation.passage" in written

        wait_for(has_begun)
        code, out, err = interrupt(child, signal.SIGINT)
    assert (code, out) == (130, b"")
    assert b"Traceback" not in err
    assert (ir / PROFILE_NAME).read_bytes() == before
    assert not list(ir.glob(".*"))


@pytest.mark.model
def test_end_to_end(cli, ir, monkeypatch, ovgen_home):
    """Two candidates of a tiny model, really measured; the figures do not matter."""
    monkeypatch.setattr("ovgen.tuning.tune.stages", two_candidates)
    for goal in ("latency", "throughput"):
        text = cli("tune", ir, "--rounds", "2", "--for", goal, "--max-kl", "1").text()
        assert len(text.splitlines()) == 4
    shown = cli("tune", ir, "--show").text().splitlines()
    assert [line.split()[0] for line in shown] == ["FOR", "latency", "throughput"]
    assert shown[2].endswith("  used")
    for entry in json.loads((ir / PROFILE_NAME).read_text())["profiles"]:
        figures = entry["figures"]
        assert all(figures[name] > 0 for name in ("ttft", "tpot", "throughput", "ratio"))
        assert figures["kl"] < 0.1
    assert not list(ovgen_home.glob("compiled/*"))  # nothing but the profile is left
    options = ("--raw", "--max-new-tokens", "2", "--profile", "throughput")
    assert cli("run", ir, "hello", *options).text()


def two_candidates(facts):
    from ovgen.tuning.candidates import stages

    (first, *_) = stages(facts)
    return (replace(first, variants=lambda best: [{**best, "KV_CACHE_PRECISION": "f32"}]),)
