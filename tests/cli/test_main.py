"""The command as a whole: what it costs to ask for help, and what becomes of errors."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import ovgen
from ovgen.cli import main as main_module
from ovgen.cli.main import main, make_parser
from ovgen.errors import StorageError

HEAVY = {"openvino", "numpy", "tokenizers", "huggingface_hub", "jinja2", "yaml", "tqdm"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["run", "--help"], 0),
        ([], 2),
        (["walk"], 2),
        (["run"], 2),
        (["run", "model", "prompt", "--raw", "--system", "Be brief."], 2),
        (["run", "model", "", "--max-new-tokens", "0"], 1),
        (["run", "model", ""], 1),
    ],
)
def test_answers_without_loading_anything_heavy(arguments, code):
    program = (
        "import sys\nfrom ovgen.cli.main import main\n"
        f"code = main({arguments!r})\n"
        f"print(code, sorted({HEAVY!r} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{code} []"


def test_a_run_sends_no_telemetry(ir):
    # __main__ calls main(), which ends the process: the imports are told by the interpreter.
    command = ["-X", "importtime", "-m", "ovgen", "run", str(ir), "hello", "--max-new-tokens", "1"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "openvino" in imported
    converter = ("openvino_telemetry", "openvino.tools.ovc.")
    assert not any(name.startswith(converter) for name in imported)


@pytest.mark.parametrize(
    ("call", "before", "after"), [("main()", None, "1"), ("main()", "3", "3"), ("main([])", "", "")]
)
def test_only_the_program_itself_keeps_numpy_to_one_thread(call, before, after):
    program = (
        "import os, sys\nfrom ovgen.cli import main as module\n"
        "module._leave = lambda code: None\nsys.argv = ['ovgen', '--version']\n"
        f"module.{call}\nprint(os.environ.get('OPENBLAS_NUM_THREADS', ''))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    environment |= {"OPENBLAS_NUM_THREADS": before} if before else {}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.stdout.split("\n")[-2] == after


def test_version(cli):
    assert cli("--version").text() == f"ovgen {ovgen.__version__}\n"


def test_the_prompt_may_come_after_options(process, ir):
    before = process("run", ir, "hello", "--raw", "--max-new-tokens", "2").text()
    assert process("run", ir, "--raw", "--max-new-tokens", "2", "hello").text() == before
    assert process("run", "--raw", ir, "--max-new-tokens", "2", "hello").text() == before
    twice = process("run", ir, "hello", "--raw", "again")
    assert twice.code == 2
    assert "unrecognized arguments: again" in twice.err


def test_module_and_script_are_the_same_command(process):
    assert process("--version").text() == f"ovgen {ovgen.__version__}\n"
    (script,) = (e for e in entry_points(group="console_scripts") if e.name == "ovgen")
    assert script.load() is main


@pytest.mark.parametrize("command", ["run", "pull", "list", "export", "eval", "tune"])
def test_help_has_an_example_and_defaults(cli, command):
    text = cli(command, "--help").text()
    assert f"example: ovgen {command}" in text
    assert "--weights" not in text or "(default: auto)" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--vers"],  # no guessing of abbreviations
        ["run", "m", "p", "--max", "3"],
        ["run", "m", "p", "--max-new-tokens", "three"],
        ["run", "m", "p", "--weights", "int3"],
        ["run", "m", "p", "--precision", "f16"],
        ["run", "m", "p", "--property", "KEY"],
        ["run", "m", "p", "--property", "=1"],
        ["run", "m", "p", "--template-arg", "a=b"],
        ["run", "m", "p", "--template-arg", "tools=[]"],
        ["run", "m", "p", "--raw", "--template-arg", "a=1"],
        ["export", "m"],
        ["export", "m", "d", "--weights", "q4"],
        ["pull"],
        ["list", "model"],
        ["eval", "m"],
        ["eval", "--against", "m"],
        ["eval", "m", "--against", "r", "--max-tokens", "x"],
        ["tune"],
        ["tune", "m", "--for", "speed"],
        ["tune", "m", "--max-kl", "0"],
        ["tune", "m", "--max-kl", "nan"],
        ["tune", "m", "--rounds", "0"],
        ["tune", "m", "--show", "--reset"],
        ["tune", "m", "--show", "--rounds", "3"],
        ["tune", "m", "--reset", "--for", "latency"],
    ],
)
def test_wrong_usage(cli, arguments):
    result = cli(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "usage: ovgen" in result.err


@pytest.fixture
def failing(monkeypatch):
    """Have `ovgen list` raise something."""

    def use(error):
        def execute(arguments):
            raise error

        monkeypatch.setattr("ovgen.cli.list.execute", execute)

    return use


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (StorageError("no\nspace \x1b[31mleft"), 1, "ovgen: no space [31mleft\n"),
        (OSError(5, "Input/output error", "/a"), 1, "ovgen: [Errno 5] Input/output error: '/a'\n"),
        (MemoryError(), 1, "ovgen: out of memory; take a smaller model, or close other programs\n"),
        (BrokenPipeError(), 141, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors(cli, failing, error, code, line):
    failing(error)
    result = cli("list")
    assert (result.code, result.out, result.err) == (code, "", line)


def test_a_mistake_of_ours(cli, failing, monkeypatch):
    failing(IndexError("list index\nout of range"))
    result = cli("list")
    assert result.code == 1
    assert result.err.startswith("ovgen: unexpected IndexError: list index out of range (")
    assert len(result.err.splitlines()) == 1
    monkeypatch.setenv(main_module.TRACEBACK_VARIABLE, "1")
    with pytest.raises(IndexError):
        cli("list")


def test_help_to_a_reader_that_has_gone():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "ovgen", "--help"], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    # argparse swallows the error of an unbuffered stdout, from Python 3.11 on.
    swallows = bool(os.environ.get("PYTHONUNBUFFERED")) and sys.version_info >= (3, 11)
    assert (done.returncode, done.stderr) == (0 if swallows else 141, b"")


def test_closed_streams():
    """As `ovgen ... >&- 2>&-` gives them."""
    program = "import sys; sys.stdout = sys.stderr = None\nfrom ovgen.cli.main import main\n"
    for arguments, code in ((["list"], 0), (["run", "none", ""], 1), (["run"], 2)):
        done = subprocess.run([sys.executable, "-c", f"{program}main_code = main({arguments!r})\n"
                               f"assert main_code == {code}"], capture_output=True)  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_parser_is_built_without_side_effects():
    assert make_parser().parse_args(["list"]).json is False
