"""Log-probabilities of the model's own distribution, before anything changed it."""

from __future__ import annotations

from ovgen.decoding.arrays import Logits, log_sum_exp, top_indices
from ovgen.decoding.candidates import Workspace
from ovgen.outputs import TokenLogprob


def token_logprob(row: Logits, token_id: int, num_top: int, workspace: Workspace) -> TokenLogprob:
    """One token of a row of logits [vocab], with the ``num_top`` most likely beside it."""
    total = log_sum_exp(row, workspace.row("weights", len(row)))
    value = row[token_id]
    best = top_indices(row, num_top).tolist() if num_top else []
    return TokenLogprob(
        token_id=token_id,
        logprob=float(value) - total,
        rank=1 + int((row > value).sum()),
        top=tuple((other, float(row[other]) - total) for other in best),
    )
