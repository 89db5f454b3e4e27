"""`ovgen run`: prompts in, answers out, in every form."""

from __future__ import annotations

import io
import json
import os
import re
import sys

import pytest

from ovgen import LLM

SHORT = ("--max-new-tokens", "12")


@pytest.fixture
def answer(ir):
    """What the API says to a prompt, as a RequestOutput."""

    def ask(prompt, *, system=None, template_args=None, **options):
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": prompt})
        with LLM(ir) as llm:
            return llm.chat(messages, template_args=template_args, max_new_tokens=12, **options)

    return ask


def line(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


def test_chat(cli, ir, answer):
    assert cli("run", ir, "hello", *SHORT).text() == line(answer("hello").text)


def test_raw(cli, ir):
    with LLM(ir) as llm:
        expected = llm.generate("hello", max_new_tokens=12).text
    assert cli("run", ir, "hello", *SHORT, "--raw").text() == line(expected)


def test_system_and_template_arguments(cli, ir, answer):
    expected = answer("hello", system="Shout.", template_args={"shout": ["LOUD", 1]})
    got = cli(
        "run", ir, "hello", *SHORT, "--system", "Shout.", "--template-arg", 'shout=["LOUD", 1]',
        "--json",
    )  # fmt: skip
    assert json.loads(got.text())["prompt_token_ids"] == list(expected.prompt_token_ids)
    assert expected.prompt_token_ids != answer("hello").prompt_token_ids


def test_json(cli, ir, answer):
    expected = answer("hello")
    out = cli("run", ir, "hello", *SHORT, "--json").text()
    assert out.endswith("}\n")
    got = json.loads(out)
    metrics = got.pop("metrics")
    assert got == {
        "text": expected.text,
        "token_ids": list(expected.token_ids),
        "prompt_token_ids": list(expected.prompt_token_ids),
        "finish_reason": expected.outputs[0].finish_reason,
        "stop_reason": expected.outputs[0].stop_reason,
    }
    assert metrics["num_output_tokens"] == len(expected.token_ids)
    assert len(metrics["itl"]) == metrics["num_output_tokens"] - 1
    assert metrics["tpot"] == pytest.approx(sum(metrics["itl"]) / len(metrics["itl"]))
    for name in ("ttft", "load_time", "prefill_tokens_per_s", "decode_tokens_per_s"):
        assert metrics[name] > 0


def test_stats(cli, ir):
    result = cli("run", ir, "hello", *SHORT, "--ignore-eos", "--stats")
    assert result.text()
    for name in ("load", "tokenization", "TTFT", "TPOT", "prefill", "decode"):
        assert re.search(rf"^{name} +\d", result.err, re.MULTILINE), result.err
    assert "12 tokens" in result.err
    assert "finish        length" in result.err


def test_stop(cli, ir, answer):
    whole = answer("hello").text
    stop = whole[5:8]
    got = json.loads(
        cli("run", ir, "hello", *SHORT, "--stop", "\0never", "--stop", stop, "--json").text()
    )
    assert got["text"] == whole[: whole.index(stop)]
    assert (got["finish_reason"], got["stop_reason"]) == ("stop", stop)


def test_max_time(cli, endless_ir):
    out = cli("run", endless_ir, "hello", "--ignore-eos", "--max-time", "0.2", "--json").text()
    got = json.loads(out)
    assert got["finish_reason"] == "length"
    assert 1 <= len(got["token_ids"]) < 100_000


@pytest.mark.parametrize(
    "options", [["--precision", "exact"], ["--property", "INFERENCE_NUM_THREADS=1"]]
)
def test_engine_options(cli, ir, options):
    assert cli("run", ir, "hello", *SHORT, *options).text()


class Stdin:
    """Standard input as a program sees it."""

    def __init__(self, content: bytes, *, is_terminal: bool = False) -> None:
        self.buffer = io.BytesIO(content)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize("arguments", [[], ["-"]])
@pytest.mark.parametrize("content", [b"hello\n", b"hello", b"hello\r\n", b"\xef\xbb\xbfhello\n"])
def test_prompt_from_stdin(cli, ir, monkeypatch, arguments, content):
    expected = cli("run", ir, "hello", *SHORT).text()
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    assert cli("run", ir, *arguments, *SHORT).text() == expected


def test_only_the_last_newline_of_stdin_goes(cli, ir, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stdin(b" hello\n\n"))
    got = json.loads(cli("run", ir, *SHORT, "--json").text())
    again = json.loads(cli("run", ir, " hello\n", *SHORT, "--json").text())
    assert got["prompt_token_ids"] == again["prompt_token_ids"]


@pytest.mark.parametrize("stdin", [Stdin(b"hello", is_terminal=True), None])
def test_no_prompt_at_all(cli, monkeypatch, stdin):
    monkeypatch.setattr(sys, "stdin", stdin)
    result = cli("run", "model")
    assert result.code == 2
    assert "give PROMPT, or pipe it" in result.err


@pytest.mark.parametrize(("content", "reason"), [(b"", "is empty"), (b"a\xffb", "(byte 1)")])
def test_unusable_stdin(fails, ir, monkeypatch, content, reason):
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    assert reason in fails("run", ir)


def test_stdin_through_a_pipe_and_a_locale_without_unicode(process, ir):
    """Whatever the locale can encode, what is written is UTF-8."""
    expected = process("run", ir, "naïve café 👍", *SHORT, "--json").text()
    ascii_only = {
        "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii",
    }  # fmt: skip
    got = process("run", ir, *SHORT, "--json", input="naïve café 👍".encode(), env=ascii_only)
    assert json.loads(got.text())["text"] == json.loads(expected)["text"]


def test_bytes_in_the_arguments_that_are_no_text(process, ir):
    line = process("run", ir, os.fsdecode(b"caf\xe9"), env={"LC_ALL": "C.UTF-8"}).one_error_line()
    assert "surrogate" in line


def test_gguf_file(cli, gguf_file, ovgen_home):
    first = cli("run", gguf_file, "hello", *SHORT, "--raw").text()
    (folder,) = ovgen_home.glob("models/*")
    written = (folder / "openvino_model.bin").stat().st_mtime_ns
    assert cli("run", gguf_file, "hello", *SHORT, "--raw").text() == first
    assert cli("run", folder, "hello", *SHORT, "--raw").text() == first
    assert (folder / "openvino_model.bin").stat().st_mtime_ns == written
    cli("run", gguf_file, "hello", *SHORT, "--raw", "--weights", "exact").text()
    assert len(list(ovgen_home.glob("models/*"))) == 2


@pytest.mark.model
def test_smollm2_knows_the_capital(process, smollm2_folder):
    question = "What is the capital of France?"
    got = process("run", smollm2_folder, question, "--stats")
    assert "Paris" in got.text()
    assert "finish        stop" in got.err
