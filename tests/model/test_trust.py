"""The check of paged attention against the stateful graph, and the record of its verdict."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from ovgen.errors import DeviceError
from ovgen.model import trust
from ovgen.model.paged_runner import PagedRunner
from ovgen.model.trust import VERDICT_NAME, check_paging, recorded_verdict

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    name = getattr(request, "param", "llama")
    target = Path(shutil.copytree(TINY / name, tmp_path / name))
    (target / VERDICT_NAME).unlink(missing_ok=True)
    return target


@pytest.mark.parametrize("folder", ["llama", "gemma3", "mixtral"], indirect=True)
def test_what_is_right_is_recorded_beside_the_model(folder: Path):
    assert recorded_verdict(folder, "CPU") is None
    verdict = check_paging(folder, "CPU")
    assert verdict.is_right
    assert (folder / VERDICT_NAME).is_file()
    assert recorded_verdict(folder, "CPU") == verdict


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("mpt", r"logits after \d+ tokens differ by \d"),
        ("mamba", "cannot be paged: .*ScaledDotProduct"),
        ("llama_no_beam_idx", "cannot be paged: .*attention_mask"),
    ],
    indirect=["folder"],
)
def test_what_is_wrong_is_found_out(folder: Path, reason: str):
    verdict = check_paging(folder, "CPU")
    assert not verdict.is_right
    assert re.search(reason, verdict.reason)
    assert recorded_verdict(folder, "CPU") == verdict


def test_a_single_wrong_token_is_found_out(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Less than what MPT does: the last row's past begins a token late."""
    set_inputs = PagedRunner._set_inputs

    def late(runner: PagedRunner, batch: object) -> None:
        set_inputs(runner, batch)
        positions = runner._tensors._arrays["position_ids"]
        if positions.size == 2:  # in decoding
            positions[1] += 1
            runner._tensors._values["position_ids"] = positions.tolist()

    monkeypatch.setattr(PagedRunner, "_set_inputs", late)
    assert not check_paging(folder, "CPU").is_right


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"is_right": true}', b"\xff", b"[" * 100_000, b'{"x": 1}'],
)
def test_a_damaged_record_is_as_good_as_none(folder: Path, content: bytes):
    (folder / VERDICT_NAME).write_bytes(content)
    assert recorded_verdict(folder, "CPU") is None


@pytest.mark.parametrize(
    "change",
    [
        {"model": "0"},
        {"openvino": "2025.1"},
        {"version": 0},
        {"is_right": "yes"},
        {"device": "GPU"},
    ],
)
def test_a_record_of_something_else_is_none(folder: Path, change: dict[str, object]):
    check_paging(folder, "CPU")
    record = json.loads((folder / VERDICT_NAME).read_text())
    (folder / VERDICT_NAME).write_text(json.dumps(record | change))
    assert recorded_verdict(folder, "CPU") is None


def test_a_changed_model_is_checked_anew(folder: Path):
    check_paging(folder, "CPU")
    weights = folder / "openvino_model.bin"
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    assert recorded_verdict(folder, "CPU") is None


def test_a_device_that_fails_says_nothing_of_the_graph(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object) -> None:
        raise DeviceError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(PagedRunner, "start", fail)
        with pytest.raises(DeviceError, match="out of memory"):
            check_paging(folder, "CPU")
    assert recorded_verdict(folder, "CPU") is None
    assert check_paging(folder, "CPU").is_right


def test_a_folder_that_cannot_be_written_has_its_record_at_home(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (folder / VERDICT_NAME).mkdir()  # root may write everywhere
    monkeypatch.setenv("OVGEN_HOME", str(tmp_path / "home"))
    verdict = check_paging(folder, "CPU")
    assert recorded_verdict(folder, "CPU") == verdict
    assert len(list((tmp_path / "home" / "paged").iterdir())) == 1


def test_the_probe_is_longer_than_a_sliding_window(folder: Path):
    assert trust._long(folder) == 96
    config = json.loads((folder / "config.json").read_text())
    for change, length in [
        ({"sliding_window": 200}, 245),
        ({"sliding_window": None}, 96),
        ({"sliding_window": "x"}, 96),
        ({"sliding_window": 1 << 20}, 96),
        ({"text_config": {"sliding_window": 64}}, 109),
        ({"text_config": 3}, 96),
    ]:
        (folder / "config.json").write_text(json.dumps(config | change))
        assert trust._long(folder) == length


def test_rounding_is_far_below_the_tolerance(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """So that the verdict does not hang on the machine."""
    monkeypatch.setattr(trust, "_TOLERANCE", trust._TOLERANCE / 10)
    assert check_paging(folder, "CPU").is_right
