"""From logits to the next token: the most likely one, or one drawn from what the warpers leave."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ovgen.decoding import nucleus, truncation
from ovgen.decoding.arrays import Logits
from ovgen.decoding.candidates import Candidates, Workspace, weights_of
from ovgen.decoding.cumulative import CumulativeWeights
from ovgen.decoding.nucleus import Nucleus
from ovgen.decoding.random import Draws
from ovgen.decoding.truncation import FEW, Truncation
from ovgen.generation_config import GenerationConfig


def greedy(logits: npt.NDArray[np.float32]) -> list[int]:
    """The most likely token of each row; of equal ones the first.

    Args:
        logits: [num_sampled, vocab] float32.
    """
    token_ids: list[int] = logits.argmax(axis=-1).tolist()
    return token_ids


class Sampler:
    """Draws a token: temperature and truncations, in transformers' order, bound once.

    Temperature comes first, so that each truncation sees the distribution it truncates. Top-n-sigma
    is first of the truncations, for it takes the standard deviation of all logits (as in
    llama.cpp); then transformers' own top-k, top-p, min-p, with XTC after min-p (as in llama.cpp,
    so that it never takes away the last likely tokens), then typical-p and the cutoffs. Mirostat
    stands alone, in place of them all.

    Args:
        config: resolved, with ``do_sample``.
        min_keep: candidates that each truncation leaves at least.

    Attributes:
        nucleus: what is drawn from, where there is at most top-p beside the temperature.
    """

    def __init__(self, config: GenerationConfig, min_keep: int = 1) -> None:
        self._temperature = np.float32(config.temperature or 1.0)
        self._steps = tuple(_truncations(config, min_keep))
        is_top_p_alone = [name for name, _ in self._steps] == ["top_p"]
        is_whole = not self._steps and config.mirostat_tau is None
        self.nucleus: Nucleus | None = None
        if min_keep == 1 and (is_top_p_alone or is_whole):
            self.nucleus = Nucleus(float(self._temperature), config.top_p or 1.0)
        self._xtc_probability = config.xtc_probability or 0.0
        self._tau = config.mirostat_tau
        self._eta = config.mirostat_eta or 0.0

    @property
    def initial_mu(self) -> float | None:
        """The first bound of surprise of Mirostat; None without it."""
        return None if self._tau is None else 2.0 * self._tau

    def warp(
        self,
        logits: Logits,
        workspace: Workspace,
        draws: Draws | None,
        *,
        may_forbid: bool = True,
    ) -> Candidates:
        """The candidates that are left of the logits [vocab].

        XTC draws first, and only where it is on. ``may_forbid``: some of the logits may be minus
        infinity. The result is valid until the workspace is used again.
        """
        candidates = Candidates(logits, workspace, self._temperature)
        if may_forbid and logits.min() == -np.inf:
            candidates.narrow(np.flatnonzero(logits > -np.inf))
        for name, step in self._steps:
            if name == "xtc":
                assert draws is not None, "XTC is for single sequences"
                if draws.uniform() >= self._xtc_probability:
                    continue
            candidates.narrow(step(candidates))
        return candidates

    def sample(
        self,
        logits: Logits,
        workspace: Workspace,
        draws: Draws,
        mu: float | None = None,
        *,
        may_forbid: bool = True,
    ) -> tuple[int, float | None]:
        """A token drawn by its logits [vocab], and Mirostat's next ``mu``.

        The token is the first, by id, at which the cumulative probability exceeds the uniform
        number drawn; with top-p alone, the first such of all tokens that is in the nucleus (see
        `nucleus`). ``may_forbid`` as in `warp`.
        """
        if self.nucleus is not None:
            size = len(logits)
            weights = weights_of(logits, workspace.row("weights", size), self._temperature)
            token_id = nucleus.draw(weights, self.nucleus.p, draws, workspace.mask(size))
            if token_id is not None:
                return token_id, None
        candidates = self.warp(logits, workspace, draws, may_forbid=may_forbid)
        if mu is not None:
            candidates.narrow(truncation.mirostat(mu)(candidates))
        index = pick(candidates.weights, draws.uniform())
        if mu is not None and self._tau is not None:
            surprise = -math.log2(float(candidates.weights[index]) / candidates.total)
            mu -= self._eta * (surprise - self._tau)
        return index if candidates.ids is None else int(candidates.ids[index]), mu


def pick(weights: Logits, uniform: float) -> int:
    """The first index at which the sum of the weights, over their total, exceeds ``uniform``.

    Args:
        weights: [n] float32, not negative, with a positive sum.
        uniform: in [0, 1).
    """
    if len(weights) <= FEW:
        return _pick_of_few(weights.tolist(), uniform)
    return CumulativeWeights(weights).index_at(uniform)


def _pick_of_few(weights: list[float], uniform: float) -> int:
    target, passed, last = uniform * sum(weights), 0.0, 0
    for index, weight in enumerate(weights):
        passed += weight
        if passed > target:
            return index
        last = index if weight else last
    return last


def _truncations(config: GenerationConfig, min_keep: int) -> list[tuple[str, Truncation]]:
    """Those that leave anything out; a neutral option adds none."""
    steps: list[tuple[str, Truncation]] = []
    if config.top_n_sigma is not None:
        steps.append(("top_n_sigma", truncation.top_n_sigma(config.top_n_sigma)))
    if config.top_k:
        steps.append(("top_k", truncation.top_k(config.top_k, min_keep)))
    if config.top_p is not None and config.top_p < 1:
        steps.append(("top_p", truncation.top_p(config.top_p, min_keep)))
    if config.min_p:
        steps.append(("min_p", truncation.min_p(config.min_p, min_keep)))
    if config.xtc_probability:
        steps.append(("xtc", truncation.xtc(config.xtc_threshold or 0.1, min_keep)))
    if config.typical_p is not None and config.typical_p < 1:
        steps.append(("typical_p", truncation.typical_p(config.typical_p, min_keep)))
    if config.epsilon_cutoff:
        steps.append(("epsilon_cutoff", truncation.epsilon_cutoff(config.epsilon_cutoff, min_keep)))
    if config.eta_cutoff:
        steps.append(("eta_cutoff", truncation.eta_cutoff(config.eta_cutoff, min_keep)))
    return steps
