"""Tuning as a whole: from a model's folder to a profile, which is not stored yet."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ovgen.engine_config import GOALS
from ovgen.errors import ConfigError
from ovgen.evaluation.passage import PASSAGE
from ovgen.model.device_facts import device_facts, identity
from ovgen.model.profile_file import Profile
from ovgen.tuning.candidates import stages
from ovgen.tuning.model_bench import ModelBench
from ovgen.tuning.search import Search, Trial


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was measured.

    Attributes:
        trials: all candidates, the built-in rule first.
        profile: of the best one; None where none is accurate enough.
    """

    trials: tuple[Trial, ...]
    profile: Profile | None


def tune(
    folder: Path,
    *,
    device: str = "CPU",
    goal: str = "latency",
    max_kl: float = 0.01,
    text: str | None = None,
    rounds: int = 3,
    progress: Callable[[str], None] = lambda stage: None,
) -> Tuning:
    """Measure compile properties on this machine; `store_profile` has later loads use the best.

    Args:
        folder: a model's IR folder.
        device: an OpenVINO device.
        goal: ``latency``, the time of one answer, or ``throughput`` of many requests.
        max_kl: the loss of accuracy allowed: mean KL divergence of the next token's distribution
            from that of ``precision="exact"``, in nats.
        text: what it is measured on; English prose by default.
        rounds: how often each candidate is measured.
        progress: called with a line about each measurement.

    Raises:
        ConfigError: an option out of range, or a virtual device.
        RequestError: the text has fewer than two tokens.
        DeviceError: an unknown device.
        ModelError: see `ovgen.errors`.
    """
    _check(goal, max_kl, rounds)
    facts = device_facts(folder, device)
    machine, model = identity(folder, device)
    progress("predictions in float32")
    bench = ModelBench(folder, device, PASSAGE if text is None else text)
    search = Search(
        bench, facts.default, goal=goal, max_kl=max_kl, rounds=rounds, progress=progress
    )
    best = search.run(stages(facts))
    profile = None
    if best is not None:
        figures = {**best.figures(), "max_kl": max_kl}
        profile = Profile(goal, machine, model, dict(best.properties), figures)
    return Tuning(tuple(search.trials), profile)


def _check(goal: str, max_kl: float, rounds: int) -> None:
    if goal not in GOALS:
        raise ConfigError(f"goal must be one of {', '.join(GOALS)}, not {goal!r}")
    is_number = isinstance(max_kl, (int, float)) and not isinstance(max_kl, bool)
    if not is_number or not 0 < max_kl < math.inf:
        raise ConfigError(f"max_kl must be a number above 0, not {max_kl!r}")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ConfigError(f"rounds must be a whole number above 0, not {rounds!r}")
