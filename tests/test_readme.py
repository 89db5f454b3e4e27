"""Whatever can rot in the README is held against what it speaks of."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tiny_checkpoints import Record, write_checkpoint

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def prose(start: str, end: str) -> str:
    """What stands between two texts, as one line."""
    return " ".join(README.split()).split(start)[1].split(end)[0]


def first_cells(title: str) -> list[str]:
    """The first cells of the rows of the table whose first column is called so."""
    table = README.split(f"\n| {title} |")[1].split("\n\n")[0]
    _, _, *rows = table.splitlines()
    return [row.split(" | ")[0].removeprefix("| ") for row in rows]


def code(text: str) -> list[str]:
    """The names in backquotes."""
    return re.findall(r"`([\w./*-]+)`", text)


def test_ci_runs_the_test_command() -> None:
    _, test_command, _ = blocks("sh")
    assert test_command.strip().endswith("&& pytest")
    assert test_command in (ROOT / ".ci" / "run").read_text()


@pytest.mark.model
def test_the_first_command_answers(smollm2_gguf: Path, ovgen_home: Path, downloads: Path) -> None:
    first, *_ = blocks("sh")
    install, run = first.strip().split(" && ", 1)
    assert install == "pip install ."
    (ovgen_home / "sources").symlink_to(downloads / "sources")
    command = f"{sys.executable} -m {run}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "The capital of France is Paris.\n"


@pytest.mark.model
@pytest.mark.parametrize(
    ("example", "printed"),
    [*zip(blocks("python")[:2], blocks("text"), strict=True)],
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
    named = set(code(" ".join(first_cells("folder"))))
    packages = {f"ovgen/{path.parent.name}/" for path in (ROOT / "ovgen").glob("*/__init__.py")}
    assert named == packages | {"ovgen/llm.py", "tests/", "benchmarks/"}
    assert all((ROOT / name).exists() for name in named)


def test_the_files_that_are_named_exist() -> None:
    names = re.findall(r"`([a-z0-9_/]+\.(?:py|yaml))`", README)
    assert names
    for name in names:
        assert (ROOT / name).exists() or any((ROOT / "ovgen").rglob(name)), name


def test_every_file_of_the_export_is_in_one_row_of_the_layout() -> None:
    rows = [code(cell) for cell in first_cells("in `ovgen/export/`")]
    folder = ROOT / "ovgen" / "export"
    names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    names |= {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}
    for name in names:
        homes = [row for row in rows if any(fnmatchcase(name, pattern) for pattern in row)]
        assert len(homes) == 1, (name, homes)
    for row in rows:
        assert all(any(fnmatchcase(name, pattern) for name in names) for pattern in row), row


def test_the_export_names_the_tensor_types() -> None:
    from ovgen.export.float_formats import ITEM_SIZES
    from ovgen.export.gguf_types import GGMLType

    gguf = re.findall(r"\w*\d\w*", prose("| GGUF file", " tensors |"))
    assert sorted(gguf) == sorted(kind.name for kind in GGMLType)
    safetensors = re.findall(r"\w*\d\w*", prose("| safetensors, ", ", quantized by"))
    floats = {name.split("_")[0] for name in ITEM_SIZES if "F" in name}
    assert set(safetensors) == floats - {"F64"}


def test_the_export_names_the_quantizations() -> None:
    from ovgen.export import awq, gptq, quantization

    listed = prose(", quantized by ", " |")
    assert sorted(code(listed)) == sorted(quantization._READERS)
    bits = re.findall(r"`(\w+)` \(([^)]*) bits\)", listed)
    found = {kind: tuple(map(int, re.findall(r"\d", numbers))) for kind, numbers in bits}
    assert found == {"gptq": gptq._BITS, "awq": (awq._BITS,)}


def test_the_export_names_the_architectures() -> None:
    from ovgen.export import gguf_config, text_part
    from ovgen.export.architectures import ARCHITECTURES

    listed, rest = prose("`model_type`: ", "- **Weights**").split(";")
    assert code(listed) == list(ARCHITECTURES)
    seeing, not_gguf = map(code, rest.split("GGUF files"))
    assert set(seeing) == set(text_part._DEFAULTS)
    # mistral's files call themselves llama.
    from_gguf = {*gguf_config._CLASSES, "mistral"}
    assert set(not_gguf) == set(ARCHITECTURES) - from_gguf


def test_the_export_names_the_forms_of_weights() -> None:
    from ovgen.export.compression import MODES

    assert code(prose("- **Weights** (`--weights`, or `weights=` in Python): ", ". ")) == [*MODES]


def test_the_table_of_export_options_names_every_one() -> None:
    from ovgen.cli.main import make_parser

    export = blocks("sh")[2]
    arguments = make_parser().parse_args(shlex.split(export)[1:])
    known = {name for action in arguments.parser._actions for name in action.option_strings}
    listed = code(" ".join(first_cells("option of `ovgen export`")))
    assert set(listed) == known - {"-h", "--help", "--offline", "--weights"}


def test_the_table_of_export_options_has_the_defaults() -> None:
    from ovgen.cli.main import make_parser
    from ovgen.export.compression_plan import (
        EXPERT_INT8_GROUP,
        INT4_GROUP,
        INT8_GROUP,
        SMALL_INT8_GROUP,
    )

    assert EXPERT_INT8_GROUP == INT4_GROUP
    defaults = re.findall(r"\d+", prose("share a scale (by default ", "; -1 for a row)"))
    groups = (INT8_GROUP, 8, SMALL_INT8_GROUP, INT4_GROUP, 4)
    assert defaults == [str(number) for number in groups]
    (override,) = re.findall(r"`'(\S+=\S+)'`", README)
    arguments = make_parser().parse_args(["export", "a", "b", "--override", override])
    assert arguments.override == [("*.down_proj.weight", "int8_sym")]


def test_the_architecture_that_is_added_gives_transformers_tokens_and_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/oracles/readme_architecture.py records what transformers computes."""
    from ovgen.export import architectures
    from ovgen.export.exporter import export_model
    from ovgen.llm import LLM

    recorded = json.loads((ROOT / "tests" / "data" / "readme_architecture.json").read_text())
    record = Record(**{field: recorded[field] for field in Record.__dataclass_fields__})
    name = record.config["model_type"]
    example = blocks("python")[2]
    assert sum(line != "" for line in example.splitlines()) == 15
    module = ModuleType(f"{architectures.__name__}.{name}")
    exec(example, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(architectures, "ARCHITECTURES", (name,))

    source = write_checkpoint(tmp_path / "checkpoint", record)
    folder = export_model(source, tmp_path / "ir", weights="fp32")
    with LLM(folder, precision="exact", properties={"CACHE_DIR": ""}) as llm:
        outputs = llm.generate(record.prompts, max_new_tokens=len(record.tokens[0]))
        first = llm.generate(record.prompts[0], max_new_tokens=1, logprobs=20)
    assert [list(output.token_ids) for output in outputs] == record.tokens
    logits = np.array(recorded["logits"])
    logprobs = dict(enumerate(logits - np.log(np.exp(logits).sum())))
    assert first.outputs[0].logprobs is not None
    for token_id, logprob in first.outputs[0].logprobs[0].top:
        assert logprob == pytest.approx(logprobs[token_id], abs=1e-4)


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
