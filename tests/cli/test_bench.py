"""`ovgen bench`: its arguments, its output, and what is left of it when it is interrupted."""

from __future__ import annotations

import json
import os
import signal

import pytest
from bench.conftest import Fakes
from cli.command import files_in
from cli.test_interrupt import interrupt, started, wait_for

GROUPS = ("TTFT", "TPOT", "throughput", "TTFT in a chat", "process start", "peak memory")


@pytest.fixture
def fakes(tmp_path_factory):
    return Fakes(tmp_path_factory.mktemp("fakes"))


@pytest.fixture
def fake_own(fakes, monkeypatch):
    """ovgen itself is imagined too."""
    monkeypatch.setattr("ovgen.bench.engines.find_own", lambda: fakes.engine("ovgen"))


def test_help_has_an_example_and_defaults(cli):
    text = cli("bench", "--help").text()
    assert "example: ovgen bench" in text
    assert "(default: auto)" in text
    assert "(default: 5)" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: MODEL"),
        (["m", "--only", "speed"], "'speed' is no workload; there are latency, throughput"),
        (["m", "--only", ""], "'' is no workload"),
        (["m", "--against", "vllm"], "'vllm' is no peer; there are genai, llama.cpp, optimum"),
        (["m", "--against", "genai,genai"], "give genai once, as genai or genai=PYTHON"),
        (["m", "--against", "genai="], "give genai once, as genai or genai=PYTHON"),
        (["m", "--peer-properties", "mine"], "invalid choice"),
        (["m", "--rounds", "0"], "'0' is not a whole number above 0"),
        (["m", "--timeout", "-1"], "'-1' is not a whole number above 0"),
        (["m", "--plot", "a.jpg"], "'a.jpg' does not end with .png"),
    ],
)
def test_wrong_usage(cli, arguments, message):
    result = cli("bench", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_what_has_no_effect_or_does_not_go_is_refused(fails, fakes, ir, tmp_path, monkeypatch):
    llama = f"llama.cpp={fakes.python('llama.cpp')}"
    same = ("--peer-properties", "same")
    assert "has no effect without genai or optimum" in fails("bench", ir, *same)
    assert "has no effect without" in fails("bench", ir, "--against", llama, *same)
    assert "llama.cpp runs on the CPU here: it cannot use GPU" in fails(
        "bench", ir, "--against", llama, "--device", "GPU"
    )
    assert "llama.cpp needs a GGUF file" in fails("bench", ir, "--against", llama)
    assert "genai=/none/python: there is no such program" in fails(
        "bench", ir, "--against", "genai=/none/python"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'ovgen[plot]'" in fails("bench", ir, "--plot", tmp_path / "a.png")


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_file_that_cannot_be_written_is_refused_at_once(fails, ir, tmp_path, option):
    name = "a.json" if option == "--json" else "a.png"
    assert "in a folder that exists" in fails("bench", ir, option, tmp_path / "none" / name)
    (tmp_path / name).mkdir()
    assert "it must be a file" in fails("bench", ir, option, tmp_path / name)


@pytest.mark.usefixtures("fake_own")
def test_against_peers(cli, fakes, gguf_file, tmp_path):
    genai, llama = fakes.python("genai", speed=0.5), fakes.python("llama.cpp", speed=2.0)
    result = cli(
        "bench", gguf_file, "--against", f"genai={genai},llama.cpp={llama}", "--rounds", "2",
        "--json", tmp_path / "a.json", "--peer-properties", "same",
    )  # fmt: skip
    header, table, notes = result.text().split("\n\n")
    assert header.splitlines()[0].split() == ["model", str(gguf_file)]
    assert "above 1 ovgen is ahead" in header
    lines = table.splitlines()
    assert lines[0].split() == ["FIGURE", "AT", "OVGEN", "GENAI", "RATIO", "LLAMA.CPP", "RATIO"]
    cells = ["TTFT", "512 tokens", "512 ms", "1,024 ms", "2.00", "256 ms", "0.50"]
    assert lines[2].split() == " ".join(cells).split()
    assert all(any(line.startswith(group) for line in lines) for group in GROUPS)
    assert len(lines) == 1 + 3 + 3 + 4 + 2 + 2 + 3
    assert notes.splitlines()[0] == "Medians of 2 rounds."
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["settings"]["rounds"] == 2
    assert told["engines"]["genai"]["interpreter"] == str(genai)
    loads = {line.split()[0]: line for line in fakes.log() if " load " in line}
    assert told["engines"]["genai"]["properties"] == json.loads(loads["genai"].split(" ", 3)[3])
    assert loads["llama.cpp"].endswith("{}")
    assert all(len(values) <= 2 for one in told["figures"] for values in one["rounds"].values())


@pytest.mark.usefixtures("fake_own")
@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ({"crashes_at": 0}, "genai's worker ended with exit code 3: RuntimeError: no more"),
        ({"dies_at": 1}, "genai's worker was killed by SIGKILL"),
        ({"hangs_at": 0}, "genai gave no answer within 2 s"),
    ],
)
def test_a_peer_that_fails(fails, fakes, ir, behaviour, message):
    against = f"genai={fakes.python('genai', **behaviour)}"
    assert message in fails("bench", ir, "--against", against, "--timeout", "2")


def group_is_gone(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [0, 2])
def test_an_interrupt_leaves_no_process(fakes, ir, number, at):
    against = f"genai={fakes.python('genai', hangs_at=at)}"
    with started("bench", ir, "--against", against, start_new_session=True) as child:
        wait_for(lambda: any("hangs" in line for line in fakes.log()))
        assert interrupt(child, number) == (128 + number, b"", b"")
        wait_for(lambda: group_is_gone(child.pid))


def test_an_interrupt_of_ovgen_itself_leaves_nothing(ir, ovgen_home):
    options = ("--only", "start", "--rounds", "1000")
    with started("bench", ir, *options, start_new_session=True) as child:
        wait_for(lambda: list(ovgen_home.glob(".bench-*/compiled/*")))
        assert interrupt(child) == (130, b"", b"")
        wait_for(lambda: group_is_gone(child.pid))
    assert files_in(ovgen_home) == {}


def test_workers_end_with_a_bench_that_is_killed(fakes, ir):
    against = f"genai={fakes.python('genai')}"
    with started("bench", ir, "--against", against, start_new_session=True) as child:
        wait_for(lambda: any("one" in line for line in fakes.log()))
        child.kill()
        child.wait()
        wait_for(lambda: group_is_gone(child.pid))


@pytest.mark.model
def test_a_tiny_model_from_end_to_end(process, ir, tmp_path):
    result = process("bench", ir, "--rounds", "1", "--json", tmp_path / "a.json")
    assert result.err == ""
    _, table, _ = result.text().split("\n\n")
    assert all(any(line.startswith(group) for line in table.splitlines()) for group in GROUPS)
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["engines"]["ovgen"]["facts"]["context_length"] == 256
    assert all(one["medians"]["ovgen"] > 0 for one in told["figures"])
    assert {one["at"] for one in told["figures"] if one["figure"] == "TTFT"} == {"32 tokens"}
