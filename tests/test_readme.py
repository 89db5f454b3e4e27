"""Whatever can rot in the README is held against what it speaks of."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_ci_runs_the_test_command() -> None:
    _, test_command = blocks("sh")
    assert test_command.strip().endswith("&& pytest")
    assert test_command in (ROOT / ".ci" / "run").read_text()


@pytest.mark.model
def test_the_first_command_answers(smollm2_gguf: Path, ovgen_home: Path, downloads: Path) -> None:
    first, _ = blocks("sh")
    install, run = first.strip().split(" && ", 1)
    assert install == "pip install ."
    (ovgen_home / "sources").symlink_to(downloads / "sources")
    command = f"{sys.executable} -m {run}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "The capital of France is Paris.\n"


@pytest.mark.model
@pytest.mark.parametrize(
    ("example", "printed"),
    [*zip(blocks("python"), blocks("text"), strict=True)],
    ids=("one", "many"),
)
def test_the_examples_print_what_they_say(
    example: str, printed: str, smollm2_gguf: Path, ovgen_home: Path, downloads: Path
) -> None:
    assert len(example.splitlines()) == 6
    (ovgen_home / "sources").symlink_to(downloads / "sources")
    command = [sys.executable, "-c", example]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == printed


def test_the_layout_names_what_there_is() -> None:
    named = set(re.findall(r"^\| `([\w./]+)` \|", README, re.MULTILINE))
    packages = {f"ovgen/{path.parent.name}/" for path in (ROOT / "ovgen").glob("*/__init__.py")}
    assert named == packages | {"ovgen/llm.py", "tests/", "benchmarks/"}
    assert all((ROOT / name).exists() for name in named)


def test_the_scope_names_the_tensor_types() -> None:
    from ovgen.export.gguf_quants import GGMLType

    listed = re.search(r"architecture with (.*?) tensors", README, re.DOTALL)
    assert listed is not None
    assert set(re.findall(r"\w*\d\w*", listed[1])) == {kind.name for kind in GGMLType}


def test_the_figures_are_those_that_were_measured() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "against_peers.py"))
    results = json.loads((ROOT / "benchmarks" / "results" / "against_peers.json").read_text())
    for row in script["table"](results["seconds"]):
        assert row in README.splitlines()
    for fact in results["machine"].values():
        assert fact in README


def test_the_table_of_options_names_every_one() -> None:
    from ovgen.generation_config import OPTION_NAMES

    table = README.split("## Decoding")[1].split("They work together")[0]
    assert set(re.findall(r"`([a-z_]+)`", table)) == set(OPTION_NAMES)


def test_the_token_loops_figures_are_those_that_were_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = runpy.run_path(str(ROOT / "benchmarks" / "token_loop.py"))
    results = json.loads((ROOT / "benchmarks" / "results" / "token_loop.json").read_text())
    for row in script["loop_table"](results["microseconds"]):
        assert row in README.splitlines()
    assert script["sentence"](results["milliseconds"]) in README.replace("\n", " ")
