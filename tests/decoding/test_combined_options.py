"""Combinations of options give what transformers gives, in exact precision.

The records come from tests/oracles/combined_options.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovgen import LLM

TESTS = Path(__file__).parents[1]
TINY = TESTS / "fixtures" / "tiny"
RECORDS = json.loads((TESTS / "data" / "combined_options.json").read_text(encoding="utf-8"))
STOPS = RECORDS["stop_strings"]
SCORE_TOLERANCE = 1e-3


def check(mismatches: list[str], number: int) -> None:
    shown = "\n".join(mismatches[:10])
    assert not mismatches, f"{len(mismatches)} mismatches in {number} records\n{shown}"


@pytest.mark.parametrize("name", ["llama", "qwen2", "opt"])
def test_greedy(name: str):
    records = RECORDS[name]["records"]
    assert len(records) == 60
    mismatches = []
    with LLM(TINY / name, precision="exact") as llm:
        for record in records:
            output = llm.generate(record["prompt"], **record["options"])
            tokens = list(output.token_ids)
            if tokens != record["tokens"]:
                label = f"{record['prompt']}, {record['options']}"
                mismatches.append(f"{label}: {tokens}, wanted {record['tokens']}")
    check(mismatches, len(records))


@pytest.mark.parametrize("name", ["llama", "qwen2", "opt"])
def test_beams(name: str):
    beams = RECORDS[name]["num_beams"]
    records = [record for record in RECORDS[name]["records"] if "sequences" in record]
    assert len(records) >= 40
    mismatches = []
    with LLM(TINY / name, precision="exact") as llm:
        for record in records:
            options = record["options"] | {"num_beams": beams, "num_return_sequences": beams}
            output = llm.generate(record["prompt"], **options)
            label = f"{record['prompt']}, {record['options']}"
            sequences = [list(item.token_ids) for item in output.outputs]
            scores = [item.score for item in output.outputs]
            if sequences != record["sequences"]:
                mismatches.append(f"{label}: {sequences}, wanted {record['sequences']}")
            elif scores != pytest.approx(record["scores"], abs=SCORE_TOLERANCE):
                mismatches.append(f"{label}: {scores}, wanted {record['scores']}")
    check(mismatches, len(records))


def test_stop_strings():
    """The text is cut before the stop string, wherever it ends within the last token."""
    records = STOPS["records"]
    assert len(records) == 25
    mismatches = []
    with LLM(TINY / STOPS["checkpoint"], precision="exact") as llm:
        for record in records:
            banned = STOPS["unprintable"] if record["printable"] else None
            options = record["options"]
            output = llm.generate(record["prompt"], suppress_tokens=banned, **options)
            tokens = list(output.token_ids)
            label = f"{record['prompt']}, {options}"
            if tokens != record["tokens"]:
                mismatches.append(f"{label}: {tokens}, wanted {record['tokens']}")
                continue
            stop = output.outputs[0].stop_reason
            whole = llm.tokenizer.decode(tokens)
            if stop not in options["stop_strings"] or not whole.startswith(f"{output.text}{stop}"):
                mismatches.append(f"{label}: {output.text!r} and {stop!r} of {whole!r}")
    check(mismatches, len(records))
