"""Every scoring method, as one table of lazy rows.  A new method is one file and one row."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import Any

from influence_cli.errors import UsageError, nearest
from influence_cli.methods.protocol import Linear, Method
from influence_cli.settings import GradSpec, build_options


@dataclass(frozen=True)
class MethodInfo:
    """A method's name, where its class is, its paper and its cost in passes over target (V) and train (T) rows."""

    name: str
    target: str  # module:Class
    summary: str
    paper: str
    cost: str

    def load(self) -> type[Any]:
        """The method's class; importing it imports no torch."""
        return pkgutil.resolve_name(self.target)


AUTO = "auto"  # decided by what a run is about: ``methods.auto.chosen``
_IP_PAPER = "Yang et al., arXiv:2405.17490"
_KOH_LIANG = "Koh and Liang, arXiv:1703.04730"
_ROWS = (
    MethodInfo("ip", "influence_cli.methods.ip:IP", "inner product at the checkpoint", f"{_IP_PAPER}, Eq. 2", "V + T"),
    MethodInfo(
        "ip-ensemble", "influence_cli.methods.ip_ensemble:IPEnsemble",
        "mean of ip over parameter-dropout copies", f"{_IP_PAPER}, Eq. 5", "M (V + T)",
    ),
    MethodInfo(
        "exact", "influence_cli.methods.exact:Exact", "influence function, dense inverse curvature",
        f"{_KOH_LIANG}, Eq. 2", "V + fit rows + T; d^2",
    ),
    MethodInfo(
        "cg", "influence_cli.methods.cg:CG", "influence function, inverse by conjugate gradients",
        f"Hestenes and Stiefel 1952; {_KOH_LIANG}, section 3", "V + iterations x fit rows + T",
    ),
    MethodInfo(
        "lissa", "influence_cli.methods.lissa:LiSSA", "influence function, inverse by a stochastic Neumann series",
        f"Agarwal et al., arXiv:1602.03943; {_KOH_LIANG}, section 3", "V + J minibatches of fit rows + T",
    ),
    MethodInfo(
        "arnoldi", "influence_cli.methods.arnoldi:Arnoldi",
        "influence function on the leading eigenvectors of curvature",
        "Schioppa et al., arXiv:2112.03052", "V + k x fit rows + T; k d",
    ),
    MethodInfo(
        "ekfac", "influence_cli.methods.ekfac:EKFAC", "influence function, Kronecker-factored inverse by layer",
        "George et al., arXiv:1806.03884; Grosse et al., arXiv:2308.03296",
        "V + 2 x fit rows + T; layers' in^2 + out^2",
    ),
    MethodInfo(
        "datainf", "influence_cli.methods.datainf:DataInf", "mean of rank-one inverses by tensor",
        "Kwon et al., arXiv:2310.00902, Eq. 5", "V + 2 x fit rows + T",
    ),
    MethodInfo(
        "tracin", "influence_cli.methods.tracin:TracIn", "ip at kept checkpoints, times their learning rates",
        "Pruthi et al., arXiv:2002.08484", "K (V + T)",
    ),
    MethodInfo(
        "gex", "influence_cli.methods.gex:GEX", "products of loss deviations over members trained further",
        "Kim, Kim, Yang, NeurIPS 2023", "M x (train 2 epochs + forward V + T)",
    ),
    MethodInfo(
        "gex-ip", "influence_cli.methods.gex_ip:GEXIP", "mean of ip over members trained further",
        f"{_IP_PAPER}, Eq. 5", "M x (train 2 epochs + V + T)",
    ),
    MethodInfo(
        "bif", "influence_cli.methods.bif:BIF", "covariance of losses over Langevin draws around the checkpoint",
        "Kreer et al. 2025", "C chains x (steps x batch + draws x forward V + T)",
    ),
    MethodInfo(
        "source", "influence_cli.methods.source:Source", "influence along training, by segments of kept checkpoints",
        "Bae et al., arXiv:2405.12186", "V + K (2 x fit rows + T); layers' in^2 + out^2 a segment",
    ),
    MethodInfo(
        "trak", "influence_cli.methods.trak:Trak", "influence in a random projection of margins' gradients",
        "Park et al., arXiv:2303.14186", "V + fit rows + T; k^2",
    ),
    MethodInfo("loss", "influence_cli.methods.loss:Loss", "minus the row's own loss", "-", "forward T"),
    MethodInfo("margin", "influence_cli.methods.margin:Margin", "labelled minus best other logit", "-", "forward T"),
    MethodInfo(
        "self-tracin", "influence_cli.methods.self_tracin:SelfTracIn", "minus the squared norm of the row's gradient",
        "Pruthi et al., arXiv:2002.08484; Thakkar et al. 2023", "forward T + norms T",
    ),
    MethodInfo(
        "self-lissa", "influence_cli.methods.self_lissa:SelfLiSSA",
        "minus the row's self-influence, with inverse curvature",
        "Bejan et al., arXiv:2302.13959", "forward T + 2 x fit rows + norms T",
    ),
    MethodInfo(
        "aum", "influence_cli.methods.aum:AUM", "mean margin over the epochs of training",
        "Pleiss et al., arXiv:2001.10528", "records of training + forward T",
    ),
    MethodInfo(
        "el2n", "influence_cli.methods.el2n:EL2N", "minus the mean error in the first epochs",
        "Paul et al., arXiv:2107.07075", "records of training + forward T",
    ),
    MethodInfo(
        "forget", "influence_cli.methods.forget:Forget", "minus how often the row was forgotten in training",
        "Toneva et al., arXiv:1812.05159", "records of training + forward T",
    ),
    MethodInfo(
        "data-maps", "influence_cli.methods.data_maps:DataMaps", "mean probability of the label over epochs",
        "Swayamdipta et al., arXiv:2009.10795", "records of training + forward T",
    ),
    MethodInfo(
        "oof-loss", "influence_cli.methods.oof_loss:OutOfFoldLoss", "minus the loss at a model trained without the row",
        "-", "folds of training + forward T",
    ),
    MethodInfo(
        "oof-margin", "influence_cli.methods.oof_margin:OutOfFoldMargin", "margin at a model trained without the row",
        "-", "folds of training + forward T",
    ),
    MethodInfo(
        "confident", "influence_cli.methods.confident:Confident",
        "margin of out-of-fold probabilities, and how many labels are wrong",
        "Northcutt et al., arXiv:1911.00068", "folds of training + forward T",
    ),
    MethodInfo(
        "knn", "influence_cli.methods.knn:KNN", "minus the share of nearest rows with another label",
        "Bahri et al., arXiv:2004.12289", "2 x forward T + forward V; n m w",
    ),
    MethodInfo(
        "outlier", "influence_cli.methods.outlier:Outlier", "minus the mean distance to the nearest rows",
        "Angiulli and Pizzuti 2002; Sun et al., arXiv:2204.06507", "2 x forward T; n^2 w",
    ),
    MethodInfo(
        "probe", "influence_cli.methods.probe:Probe",
        "likelihood of the label to a linear probe fitted without the row",
        "Alain and Bengio, arXiv:1610.01644", "2 x forward T; n w^2",
    ),
    MethodInfo(
        "target-probe", "influence_cli.methods.target_probe:TargetProbe",
        "likelihood of the label to a linear probe fitted on target rows",
        "Alain and Bengio, arXiv:1610.01644", "2 x forward T + forward V; m w^2",
    ),
    MethodInfo(
        "head-vm", "influence_cli.methods.head_vm:HeadVM", "minus a row's cost to the last layer tuned on target rows",
        "-", "forward V/2 + forward T; head^2",
    ),
    MethodInfo(
        AUTO, "influence_cli.methods.auto:Auto",
        "the default: how sure a label is right, by features; a method of effects for other questions",
        "-", "2 x forward T + forward V; n w^2 + n^2",
    ),
    MethodInfo("random", "influence_cli.methods.random:Random", "seeded uniform draw, the floor", "-", "none"),
)  # fmt: skip
METHODS: dict[str, MethodInfo] = {info.name: info for info in _ROWS}


def make_methods(spec: GradSpec) -> dict[str, Method]:
    """The methods of a run by name, with their options.

    Raises:
        UsageError: an unknown method or option.
    """
    made: dict[str, Method] = {}
    for name in spec.methods:
        if name not in METHODS:
            raise UsageError(f"unknown method {name!r}", fix=nearest(name, list(METHODS)))
        made[name] = build_options(METHODS[name].load(), name, spec.options.get(name, {}))
    return made


__all__ = ["AUTO", "METHODS", "Linear", "Method", "MethodInfo", "make_methods"]
