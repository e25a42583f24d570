"""IP, the inner product of a row's gradient with the objective's gradient at the final checkpoint.

    s_i = < grad l_i(theta), grad Phi(theta) >

Charpiat et al. 2019 (arXiv:2102.13262), unnormalised similarity; Yang, Yue, Chen, Liu, "Revisit, Extend, and Enhance
Hessian-Free Influence Functions" (arXiv:2405.17490), Eq. 2.  Phi is a mean over target rows, so the score is in
units of Phi per unit step along the row's gradient; it estimates no effect of removal.
"""

from __future__ import annotations

from dataclasses import dataclass

from influence_cli.methods.protocol import Linear


@dataclass(frozen=True)
class IP(Linear):
    """P is the identity, and the only member is the checkpoint."""
