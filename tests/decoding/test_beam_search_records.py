"""Beam search, group beams and guidance as transformers computes them, in exact precision.

The records come from tests/oracles/beam_search.py, group_beam_search.py and guidance.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ovgen import LLM
from ovgen.outputs import RequestOutput

TESTS = Path(__file__).parents[1]
TINY = TESTS / "fixtures" / "tiny"
BEAMS = json.loads((TESTS / "data" / "beam_search.json").read_text(encoding="utf-8"))
GROUPS = json.loads((TESTS / "data" / "group_beam_search.json").read_text(encoding="utf-8"))
GUIDANCE = json.loads((TESTS / "data" / "guidance.json").read_text(encoding="utf-8"))
SCORE_TOLERANCE = 1e-3
EOS_NAMES = {1: "eos_one", 2: "eos_two", 5: "eos_five"}
RECORDED = {"num_eos", "sequences", "scores", "ended"}  # the rest of a record is options


def search(llm: LLM, entry: dict[str, Any], record: dict[str, Any], returned: int) -> RequestOutput:
    options = {key: value for key, value in record.items() if key not in RECORDED}
    return llm.generate(
        entry["prompt"],
        num_return_sequences=returned,
        eos_token_id=entry[EOS_NAMES[record["num_eos"]]],
        max_new_tokens=entry["max_new_tokens"],
        **options,
    )


def ends_badly(output: RequestOutput, eos: list[int], limit: int) -> bool:
    """True if a finish reason does not fit the last token."""
    for item in output.outputs:
        last = item.token_ids[-1]
        wanted = ("stop", last) if last in eos else ("length", None)
        if (item.finish_reason, item.stop_reason) != wanted:
            return True
        if last not in eos and len(item.token_ids) != limit:
            return True
    return False


def differences(
    output: RequestOutput,
    sequences: list[list[int]],
    scores: list[float],
    eos: list[int],
    limit: int,
) -> list[str]:
    found = []
    tokens = [list(item.token_ids) for item in output.outputs]
    if tokens != sequences:
        found.append(f"sequences {tokens}, wanted {sequences}")
    own = [item.score for item in output.outputs]
    if own != pytest.approx(scores, abs=SCORE_TOLERANCE):
        found.append(f"scores {own}, wanted {scores}")
    if ends_badly(output, eos, limit):
        reasons = [(item.finish_reason, item.stop_reason) for item in output.outputs]
        found.append(f"finish reasons {reasons}")
    return found


def beam_mismatches(llm: LLM, entry: dict[str, Any], records: list[dict[str, Any]]) -> list[str]:
    """Of all returned sequences, and of the best alone."""
    found = []
    for record in records:
        eos = entry[EOS_NAMES[record["num_eos"]]]
        for returned in (1, record["num_beams"]):
            output = search(llm, entry, record, returned)
            sequences, scores = record["sequences"][:returned], record["scores"][:returned]
            wrong = differences(output, sequences, scores, eos, entry["max_new_tokens"])
            label = {key: value for key, value in record.items() if key not in RECORDED}
            found += [f"{label} {record['num_eos']} EOS, {returned} returned: {x}" for x in wrong]
    return found


def check(mismatches: list[str], number: int) -> None:
    shown = "\n".join(mismatches[:10])
    assert not mismatches, f"{len(mismatches)} mismatches in {number} records\n{shown}"


@pytest.mark.parametrize("num_beams", [2, 4, 6])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_beam_search(name: str, num_beams: int):
    entry = BEAMS[name]
    records = [record for record in entry["records"] if record["num_beams"] == num_beams]
    assert len(records) == 96
    with LLM(TINY / name, precision="exact") as llm:
        check(beam_mismatches(llm, entry, records), len(records))


@pytest.mark.model
def test_beam_search_of_smollm2(smollm2_exact_folder: Path):
    entry = BEAMS["smollm2"]
    with LLM(smollm2_exact_folder, precision="exact") as llm:
        check(beam_mismatches(llm, entry, entry["records"]), len(entry["records"]))


def without_eos(tokens: list[int], eos: list[int]) -> tuple[list[int], bool]:
    return (tokens[:-1], True) if tokens[-1] in eos else (tokens, False)


@pytest.mark.parametrize("beams", [(4, 2), (6, 3), (6, 2), (4, 4)])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_group_beam_search(name: str, beams: tuple[int, int]):
    """transformers 4.56 does not tell which EOS ended a hypothesis: compared without it."""
    entry = GROUPS[name]
    records = [
        record
        for record in entry["records"]
        if (record["num_beams"], record["num_beam_groups"]) == beams
    ]
    assert len(records) == 48
    mismatches = []
    with LLM(TINY / name, precision="exact") as llm:
        for record in records:
            eos = entry[EOS_NAMES[record["num_eos"]]]
            output = search(llm, entry, record, record["num_beams"])
            rows = [without_eos(list(item.token_ids), eos) for item in output.outputs]
            wanted = list(zip(record["sequences"], record["ended"], strict=True))
            scores = [item.score for item in output.outputs]
            label = {key: value for key, value in record.items() if key not in RECORDED}
            if rows != wanted:
                mismatches.append(f"{label}: {rows}, wanted {wanted}")
            elif scores != pytest.approx(record["scores"], abs=SCORE_TOLERANCE):
                mismatches.append(f"{label}: scores {scores}, wanted {record['scores']}")
            elif ends_badly(output, eos, entry["max_new_tokens"]):
                mismatches.append(f"{label}: finish reasons")
    check(mismatches, len(records))


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "mpt", "gemma3", "bloom"])
def test_guidance(name: str):
    """No negative prompt means the prompt's last token."""
    entry = GUIDANCE[name]
    mismatches = []
    with LLM(TINY / name, precision="exact", attention_backend="stateful") as llm:
        for record in entry["records"]:
            output = llm.generate(
                entry["prompt"],
                guidance_scale=record["guidance_scale"],
                negative_prompt=record["negative"],
                max_new_tokens=entry["max_new_tokens"],
            )
            tokens = list(output.outputs[0].token_ids)
            if tokens != record["tokens"]:
                label = f"scale {record['guidance_scale']}, negative {record['negative']}"
                mismatches.append(f"{label}: {tokens}, wanted {record['tokens']}")
    check(mismatches, len(entry["records"]))
