"""Models small enough to run in a blink, and ways to run the command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.command import Result, files_in
from hub.conftest import web  # noqa: F401
from tiny_gguf import VARIANTS, write_tiny_gguf

from ovgen.cli.main import main

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tiny"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if shout is defined %}{{ shout }}{% endif %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)

Cli = Callable[..., Result]


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    """A tiny llama's IR folder with a chat template."""
    folder = tmp_path / "models" / "tiny"
    shutil.copytree(FIXTURES / "llama", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def endless_ir(ir: Path) -> Path:
    """The same with a context that takes minutes to fill."""
    path = ir / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "max_position_embeddings": 1 << 20}))
    return ir


@pytest.fixture(scope="session")
def written_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", VARIANTS["Q8_0"])


@pytest.fixture
def gguf_file(tmp_path: Path, written_gguf: Path) -> Path:
    """A tiny llama as a GGUF file, without a chat template."""
    folder = tmp_path / "gguf"
    folder.mkdir()
    return Path(shutil.copy(written_gguf, folder))


@pytest.fixture(autouse=True)
def _closed_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for name in ("OVGEN_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "user_hf"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "user_hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the command in this process."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return Result(code, written.out, written.err)

    return run


@pytest.fixture
def fails(cli: Cli, ovgen_home: Path, tmp_path: Path) -> Callable[..., str]:
    """Run a command that must fail with one line and leave nothing behind; gives the line."""

    def run(*arguments: object) -> str:
        before = files_in(ovgen_home), files_in(tmp_path)
        line = cli(*arguments).one_error_line()
        assert (files_in(ovgen_home), files_in(tmp_path)) == before
        return line

    return run


@pytest.fixture
def process() -> Callable[..., Result]:
    """Run the command in a process of its own."""

    def run(*arguments: object, **options: object) -> Result:
        env = {**os.environ, **options.pop("env", {})}
        done = subprocess.run(
            [sys.executable, "-m", "ovgen", *map(str, arguments)],
            capture_output=True,
            timeout=120,
            env=env,
            **{"stdin": subprocess.DEVNULL, **options} if "input" not in options else options,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run
