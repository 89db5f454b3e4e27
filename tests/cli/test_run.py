"""`ovgen run`: prompts in, answers out, in every form."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys

import pytest

from ovgen import LLM
from ovgen.cli.run import to_json
from ovgen.outputs import CompletionOutput, RequestMetrics, RequestOutput, TokenLogprob

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
        "outputs": [
            {
                "text": expected.text,
                "token_ids": list(expected.token_ids),
                "finish_reason": expected.outputs[0].finish_reason,
                "stop_reason": expected.outputs[0].stop_reason,
                "score": None,
                "logprobs": None,
                "cumulative_logprob": None,
            }
        ],
        "seed": None,
    }
    assert metrics["num_output_tokens"] == len(expected.token_ids)
    assert len(metrics["itl"]) == metrics["num_output_tokens"] - 1
    assert metrics["tpot"] == pytest.approx(sum(metrics["itl"]) / len(metrics["itl"]))
    for name in ("ttft", "load_time", "prefill_tokens_per_s", "decode_tokens_per_s"):
        assert metrics[name] > 0


def test_json_of_several_samples(cli, ir, answer):
    expected = answer("hello", do_sample=True, seed=7, num_return_sequences=3, logprobs=2)
    got = json.loads(
        cli(
            "run", ir, "hello", *SHORT, "--seed", "7", "--option", "num_return_sequences=3",
            "--logprobs", "2", "--json",
        ).text()
    )  # fmt: skip
    assert [one["text"] for one in got["outputs"]] == [one.text for one in expected.outputs]
    assert len({one["text"] for one in got["outputs"]}) == 3
    assert (got["text"], got["seed"]) == (expected.text, 7)
    for one, wanted in zip(got["outputs"], expected.outputs, strict=True):
        assert one["cumulative_logprob"] == pytest.approx(wanted.cumulative_logprob)
        assert [token["token_id"] for token in one["logprobs"]] == one["token_ids"]
        assert all(token["rank"] >= 1 and len(token["top"]) == 2 for token in one["logprobs"])
    assert "prompt_logprobs" not in got


def test_json_of_beams_and_of_the_prompt(cli, ir, answer):
    expected = answer("hello", num_beams=3, prompt_logprobs=1)
    got = json.loads(
        cli(
            "run", ir, "hello", *SHORT, "--num-beams", "3", "--option", "prompt_logprobs=1",
            "--json",
        ).text()
    )  # fmt: skip
    assert got["token_ids"] == list(expected.token_ids)
    assert got["outputs"][0]["score"] == pytest.approx(expected.outputs[0].score)
    first, *others = got["prompt_logprobs"]
    assert first is None
    assert [token["token_id"] for token in others] == got["prompt_token_ids"][1:]


def test_json_has_no_infinite_numbers():
    impossible = TokenLogprob(5, -math.inf, 9, ((1, -0.5), (2, -math.inf)))
    metrics = RequestMetrics(1, 1, 0.1, (), 0.1, 0.1, 0.1)
    output = CompletionOutput("a", (5,), "length", None, -math.inf, (impossible,))
    got = to_json(RequestOutput((1,), (output,), metrics, None, (None, impossible)))
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    shown = {"token_id": 5, "logprob": None, "rank": 9, "top": [[1, -0.5], [2, None]]}
    assert got["outputs"][0]["logprobs"] == [shown]
    assert got["prompt_logprobs"] == [None, shown]


def test_sampling_is_streamed_as_the_api_samples(cli, ir, answer):
    options = ("--temperature", "1.5", "--top-p", "0.9", "--top-k", "40", "--min-p", "0.01")
    expected = answer("hello", do_sample=True, temperature=1.5, top_p=0.9, top_k=40, min_p=0.01,
                      seed=3).text  # fmt: skip
    assert cli("run", ir, "hello", *SHORT, *options, "--seed", "3").text() == line(expected)
    assert expected != answer("hello").text


def test_text_is_of_one_output_where_the_model_wants_several(cli, ir):
    path = ir / "generation_config.json"
    stored = json.loads(path.read_text())
    wishes = {"do_sample": True, "seed": 5, "num_return_sequences": 2}
    path.write_text(json.dumps({**stored, **wishes}))
    text = cli("run", ir, "hello", *SHORT).text()
    outputs = json.loads(cli("run", ir, "hello", *SHORT, "--json").text())["outputs"]
    assert len({one["text"] for one in outputs}) == 2
    assert text == line(outputs[0]["text"])


def test_stats(cli, ir):
    result = cli("run", ir, "hello", *SHORT, "--ignore-eos", "--stats")
    assert result.text()
    for name in ("load", "tokenization", "TTFT", "TPOT", "prefill", "decode"):
        assert re.search(rf"^{name} +\d", result.err, re.MULTILINE), result.err
    assert "12 tokens" in result.err
    assert "finish        length\n" in result.err


def test_stats_of_several_outputs(cli, ir):
    result = cli(
        "run", ir, "hello", *SHORT, "--ignore-eos", "--seed", "1", "--stats", "--json",
        "--option", "num_return_sequences=2",
    )  # fmt: skip
    assert "24 tokens" in result.err
    assert "finish        length, length\n" in result.err


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
