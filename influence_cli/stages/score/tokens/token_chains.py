"""Scores of tokens by a sampler: nbeta times the covariance of a token's own loss with Phi over the draws.

    s_it = nbeta Cov(l_it(w), Phi(w)),    sum_t s_it = s_i,    centred within each chain and pooled

The randomness of a chain is a function of its seed, number and step alone, so the chains are drawn again, with the
losses of the tokens of a few rows beside Phi in the place of the losses of all rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from influence_cli.data.kinds.text import MASK
from influence_cli.data.manifest import Rows
from influence_cli.engines.point import differentiable_kernels
from influence_cli.errors import ModelError
from influence_cli.methods.bif import smaller_step
from influence_cli.model.next_token import by_token
from influence_cli.stages.grads.chains import ChainRunner
from influence_cli.stages.grads.interim import KeptInterim
from influence_cli.stages.grads.member_model import MemberModel
from influence_cli.stages.run.quantities import chain_parts
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.store.keys import digest_of_sorted

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float64]


class TokenChains(ChainRunner):
    """Chains that observe the losses of tokens: those of a row one after another, rows in the order of ``rows``."""

    def __init__(
        self, run: Run, session: Session, at: MemberModel, name: str, rows: Rows, objectives: list[str]
    ) -> None:
        """Every text is read once, for its length."""
        super().__init__(run, session, at, name, rows, objectives)
        self.lengths = np.zeros(len(rows), dtype=np.int64)
        for index, x, _ in self.rows:
            self.lengths[[self.place[row] for row in index.tolist()]] = x.tensors[MASK].sum(1).cpu().numpy()
        self.first = np.concatenate([[0], np.cumsum(self.lengths)])

    @property
    def observed(self) -> int:
        """One a token."""
        return int(self.first[-1])

    def losses(self, parameters: dict[str, Tensor]) -> Floats:
        """Losses of all tokens, float64; that of a text's first one is 0."""
        found = np.empty(self.observed)
        with torch.no_grad(), by_token(self.curvature.at.model):
            for index, x, _ in self.rows:
                losses = self.curvature.at.logits(x, parameters).double().cpu().numpy()
                for row, values in zip(index.tolist(), losses, strict=True):
                    k = self.place[row]
                    found[self.first[k] : self.first[k + 1]] = values[: self.lengths[k]]
        return found


def scores_of_tokens(run: Run, session: Session, at: MemberModel, method: str, rows: Rows) -> dict[str, list[Floats]]:
    """By objective the scores [T] of the tokens of each of the rows.

    Raises:
        ModelError: no chain has stayed finite.
    """
    objectives = list(run.objectives)
    chains = TokenChains(run, session, at, method, rows, objectives)
    products, freedom = np.zeros((len(objectives), chains.observed)), 0
    digest = digest_of_sorted(rows.row_keys)
    parts = {o: chain_parts(run, method, o) for o in objectives}
    for k, number in enumerate(run.samplers[method].numbers):
        interim = KeptInterim(run, session, "tokens", *(parts[o][k].name for o in objectives), digest)
        with interim.kept(chains.curvature), differentiable_kernels(chains.curvature.point.recurrent):
            taken, facts = chains.run_chain(number, interim)
        if facts["diverged"] is None:
            products += taken.moments.products
            freedom += taken.moments.draws - 1
    if freedom == 0:
        raise ModelError(f"{method}: no chain has stayed finite", fix=smaller_step(chains.facts, method))
    scores: Any = chains.law.nbeta * products / freedom
    return {o: np.split(scores[j], chains.first[1:-1]) for j, o in enumerate(objectives)}
