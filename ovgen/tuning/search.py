"""The search for the best properties: which candidates are measured, how often, and who wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Protocol

from ovgen.errors import DeviceError
from ovgen.tuning.candidates import NUMERIC, Properties, Stage, label

ANSWER_TOKENS = 128  # of the answer whose time is the latency

# A candidate further behind the best than this is not measured again.
_HOPELESS = 1.15
# Gaps below this are noise: whatever is in use stays.
_MARGIN = 0.97


@dataclass(frozen=True, slots=True)
class Sample:
    """Times of one load: ``ttft`` and ``tpot`` in seconds, ``throughput`` in tokens/s."""

    ttft: float
    tpot: float
    throughput: float

    def cost(self, goal: str) -> float:
        """What is to be small."""
        if goal == "throughput":
            return 1 / self.throughput
        return self.ttft + ANSWER_TOKENS * self.tpot


class Bench(Protocol):
    """Measures properties. Each raises DeviceError where the device refuses them."""

    def divergence(self, properties: Properties) -> float:
        """Mean KL divergence of the next token's distribution from float32's, in nats."""

    def sample(self, properties: Properties) -> Sample:
        """Load the model anew and take its times."""


@dataclass(slots=True)
class Trial:
    """A candidate and what became of it.

    Attributes:
        properties: of the candidate.
        kl: see `Bench.divergence`; infinite where it was refused.
        refusal: why the device refused it.
        samples: one a round.
        ratios: its cost over that of the built-in rule, one a round.
        verdict: in a few words.
    """

    properties: Properties
    kl: float = math.inf
    refusal: str | None = None
    samples: list[Sample] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    verdict: str = ""

    @property
    def sample(self) -> Sample:
        """Medians over the rounds."""
        return Sample(
            median(one.ttft for one in self.samples),
            median(one.tpot for one in self.samples),
            median(one.throughput for one in self.samples),
        )

    @property
    def ratio(self) -> float:
        """Median over the rounds; infinite where there was none."""
        return median(self.ratios) if self.ratios else math.inf

    def figures(self) -> dict[str, float]:
        """What was measured, by the names that a profile has for it."""
        return {**asdict(self.sample), "kl": self.kl, "ratio": self.ratio}


class Search:
    """A coordinate search for the fastest properties within a loss of accuracy.

    Rounds interleave the candidates, so that a change in the machine's load strikes all of them,
    and each is compared to the built-in rule within the round.

    Args:
        bench: measures.
        default: the properties that the built-in rule takes.
        goal: ``latency`` or ``throughput``.
        max_kl: the loss of accuracy allowed.
        rounds: how often each candidate is measured in a stage.
        progress: told of each measurement.
    """

    def __init__(
        self,
        bench: Bench,
        default: Properties,
        *,
        goal: str,
        max_kl: float,
        rounds: int,
        progress: Callable[[str], None],
    ) -> None:
        self.trials: list[Trial] = []
        self._bench = bench
        self._goal, self._max_kl, self._rounds = goal, max_kl, rounds
        self._progress = progress
        self._kl: dict[tuple[tuple[str, str], ...], float] = {}
        self._default = self._trial(default)

    def run(self, stages: Iterable[Stage]) -> Trial | None:
        """The best of all candidates; None where none is accurate enough.

        Raises:
            DeviceError: the device refuses even the built-in rule's properties.
        """
        self._measure(self._default, "built-in rule")
        best = self._default
        for stage in stages:
            trials = [self._trial(properties) for properties in stage.variants(best.properties)]
            best = self._best_of(stage.name, best, trials)
        if self._is_usable(self._default) and best.ratio > _MARGIN:
            best = self._default  # what seemed faster at first
        self._judge(best)
        return best if self._is_usable(best) else None

    def _trial(self, properties: Properties) -> Trial:
        """The trial of some properties, with its accuracy; each is made once."""
        for trial in self.trials:
            if trial.properties == properties:
                return trial
        trial = Trial(properties)
        self.trials.append(trial)
        numeric = tuple((name, properties[name]) for name in NUMERIC if name in properties)
        try:
            if numeric not in self._kl:
                self._progress(f"accuracy of {label(properties)}")
                self._kl[numeric] = self._bench.divergence(properties)
            # Without numbers, as where bfloat16 overflows, there is no accuracy.
            trial.kl = math.inf if math.isnan(self._kl[numeric]) else self._kl[numeric]
        except DeviceError as exc:
            trial.refusal = str(exc)
        return trial

    def _best_of(self, stage: str, best: Trial, trials: list[Trial]) -> Trial:
        """The fastest of the accurate ones; the best so far stays unless another is clearly faster.

        Where none is accurate, the one that is nearest to it, for the next stage to go on from.
        """
        contenders = [best, *(trial for trial in trials if trial is not best)]
        usable = [trial for trial in contenders if self._is_usable(trial)]
        if usable not in ([], [best]):
            self._run_rounds(stage, usable)
        usable = [trial for trial in usable if trial.refusal is None]
        if not usable:
            return min(contenders, key=lambda trial: trial.kl)
        fastest = min(usable, key=lambda trial: trial.ratio)
        is_clear = fastest.ratio < _MARGIN * best.ratio
        return fastest if is_clear or not self._is_usable(best) else best

    def _run_rounds(self, stage: str, contenders: list[Trial]) -> None:
        contenders = [trial for trial in contenders if trial is not self._default]
        for number in range(self._rounds):
            where = f"{stage}, round {number + 1} of {self._rounds}"
            yardstick = self._measure(self._default, where)
            # To and fro, so that a drift of the machine favours none.
            for trial in contenders[:: -1 if number % 2 else 1]:
                with suppress(DeviceError):
                    trial.ratios.append(self._measure(trial, where) / yardstick)
            usable = [one for one in (self._default, *contenders) if self._is_usable(one)]
            limit = _HOPELESS * min((one.ratio for one in usable), default=math.inf)
            contenders = [one for one in contenders if one.refusal is None and one.ratio <= limit]

    def _measure(self, trial: Trial, where: str) -> float:
        """The cost of a trial in one more sample."""
        self._progress(f"{where}: {label(trial.properties)}")
        try:
            if trial.refusal is not None:
                raise DeviceError(trial.refusal)
            sample = self._bench.sample(trial.properties)
        except DeviceError as exc:
            trial.refusal = str(exc)
            raise
        trial.samples.append(sample)
        if trial is self._default:
            trial.ratios.append(1.0)
        return sample.cost(self._goal)

    def _is_usable(self, trial: Trial) -> bool:
        return trial.refusal is None and trial.kl <= self._max_kl

    def _judge(self, best: Trial) -> None:
        for trial in self.trials:
            if trial.refusal is not None:
                trial.verdict = "refused by the device"
            elif trial.kl > self._max_kl:
                trial.verdict = "KL too high"
            elif trial is best:
                trial.verdict = "best"
            else:
                trial.verdict = "slower" if trial.ratio > best.ratio / _MARGIN else "no gain"
            if trial is self._default:
                trial.verdict += " (built-in rule)"
