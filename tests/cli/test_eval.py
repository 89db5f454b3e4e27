"""`ovgen eval`: what it says, writes and refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
from cli.conftest import FIXTURES
from cli.test_interrupt import interrupt, started, wait_for


@pytest.fixture
def other(ir, tmp_path):
    """Another model with the same vocabulary."""
    return shutil.copytree(FIXTURES / "qwen2", tmp_path / "models" / "other")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("One two three four five. " * 9, encoding="utf-8-sig")
    return path


def test_tables_and_json(cli, ir, other, text, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hello\n\nhow are you, and what do you want to do today?\n")
    path = tmp_path / "out.json"
    told = cli(
        "eval", ir, "--against", other, "--text", text, "--prompts", prompts,
        "--max-new-tokens", 5, "--max-tokens", 40, "--json", path,
    ).text()  # fmt: skip
    header, figures, continuations = (part.splitlines() for part in told.split("\n\n"))
    assert header[0] == f"model      {ir}, precision default"
    assert header[1] == f"reference  {other}, precision exact"
    assert header[3] == f"text       {text}, 39 tokens predicted"
    stored = json.loads(path.read_text())
    assert (stored["model"], stored["num_tokens"]) == (str(ir), 39)
    told_figures = dict(line.rsplit(maxsplit=1) for line in figures)
    assert float(told_figures["perplexity"].replace(",", "")) == pytest.approx(
        stored["perplexity"], abs=1e-3
    )
    assert float(told_figures["KL divergence, mean"]) == pytest.approx(stored["mean_kl"], 1e-2)
    assert told_figures["same likeliest token"] == f"{stored['top1_agreement']:.2%}"
    assert stored["p99_kl"] <= stored["max_kl"]
    assert [line.split()[-2] for line in continuations[1:]] == ["5", "5"]
    assert continuations[2].startswith("how are you, and what do you want to...  ")
    first, second = stored["continuations"]
    assert (first["prompt"], first["num_tokens"]) == ("hello", 5)
    equal = second["num_equal"]
    assert continuations[2].split()[-1] == ("all" if equal == 5 else str(equal))


def test_the_default_text_and_prompts(cli, ir):
    told = cli("eval", ir, "--against", ir, "--precision", "exact", "--max-tokens", 300).text()
    lines = told.splitlines()
    assert "text       English prose, 298 tokens predicted" in lines
    assert "same likeliest token 100.00%" in [" ".join(line.split()) for line in lines]
    assert sum(line.split()[-1] == "all" for line in lines if line) == 5


@pytest.mark.parametrize(
    ("option", "content", "told"),
    [
        ("--text", None, "No such file"),
        ("--text", b"ab\xff", "not UTF-8 (byte 2)"),
        ("--text", b"", "fewer than two tokens"),
        ("--prompts", None, "No such file"),
        ("--prompts", b"\n \n", "one prompt a line"),
        ("--prompts", b"a" * 100_001, "100,000 characters at most"),
    ],
)
def test_files_of_no_use(fails, ir, tmp_path, option, content, told):
    path = tmp_path / "file.txt"
    if content is not None:
        path.write_bytes(content)
    assert told in fails("eval", ir, "--against", ir, option, path)


def test_a_text_that_is_cut_within_a_character(cli, ir, tmp_path, monkeypatch):
    monkeypatch.setattr("ovgen.evaluation.evaluate.MAX_TOKENS", 1)  # 128 bytes are read
    path = tmp_path / "text.txt"
    path.write_text("a" + "ä" * 300, encoding="utf-8")
    monkeypatch.setattr("ovgen.evaluation.evaluate._check", lambda *_: None)
    assert cli("eval", ir, "--against", ir, "--text", path).text()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--max-tokens", "1"], "max_tokens must be a whole number, 2 to 32768, not 1"),
        (["--max-new-tokens", "0"], "max_new_tokens must be a whole number, 1 or more, not 0"),
        (["--weights", "int8_sym"], "it is exported already"),
        (["--device", "NPU9"], "NPU9"),
        (["--json", "/nowhere/file"], "/nowhere/file"),
    ],
)
def test_options_of_no_use(fails, ir, options, told):
    assert told in fails("eval", ir, "--against", ir, *options)


def test_models_that_are_none(fails, ir, tmp_path):
    assert "does not exist" in fails("eval", ir, "--against", tmp_path / "nothing")
    (ir / "openvino_model.bin").write_bytes(b"")
    assert str(ir) in fails("eval", ir, "--against", ir)


@pytest.mark.model
def test_a_gguf_against_its_own_values(cli, gguf_file):
    told = cli("eval", gguf_file, "--against", gguf_file, "--precision", "exact").text()
    assert "KL divergence, mean" in told


def test_ctrl_c(ir, tmp_path):
    path = tmp_path / "out.json"
    options = ("--json", path, "--max-new-tokens", "200")
    with started("eval", ir, "--against", ir, *options, python=("-X", "importtime")) as child:
        os.set_blocking(child.stderr.fileno(), False)
        written = b""

        def has_begun() -> bool:
            nonlocal written
            written += child.stderr.read() or b""
            return b"ovgen.text.detokenizer" in written

        wait_for(has_begun)
        code, out, err = interrupt(child, signal.SIGINT)
    assert (code, out) == (130, b"")
    assert b"Traceback" not in err
    assert not path.exists()
