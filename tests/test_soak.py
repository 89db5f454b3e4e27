"""A short form of benchmarks/soak.py: threads at random over a pool that is too small."""

from __future__ import annotations

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "soak.py"
LLAMA = Path(__file__).parent / "fixtures" / "tiny" / "llama"


def test_every_request_ends_right_and_the_pool_is_whole():
    report = runpy.run_path(str(SCRIPT))["soak"](LLAMA, seconds=8, num_threads=16, seed=1)
    assert report["faults"] == []
    counts = report["counts"]
    assert counts["as alone"] > 20
    assert min(counts.get(name, 0) for name in ("aborted", "dropped", "streams closed")) > 0
    assert counts["refused for want of room in the queue"] > 0
