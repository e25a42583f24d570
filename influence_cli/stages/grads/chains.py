"""Chains of draws of the parameters around the checkpoint, with moments of the rows' losses over them.

What a chain draws from, and by which steps, is chosen once and stored (``names.law``), so that chains may be run by
different processes.  A chain that was stopped goes on from its last state that was written.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.curvature.further import FitLoss, RepeatedRows
from influence_cli.engines.point import differentiable_kernels
from influence_cli.maths.draws import CoMoments
from influence_cli.maths.iterative import State
from influence_cli.maths.langevin import ChainState, advanced, chosen_rows
from influence_cli.stages.grads.chain_law import law_of
from influence_cli.stages.grads.further import open_fit_rows
from influence_cli.stages.grads.interim import KeptInterim
from influence_cli.stages.grads.member_model import MemberModel
from influence_cli.stages.grads.phi_values import PhiValues
from influence_cli.stages.grads.row_loop import Looped
from influence_cli.stages.run import names
from influence_cli.stages.run.plan import Work
from influence_cli.stages.run.quantities import QUANTITIES, ChainPart
from influence_cli.stages.run.rates import LOSS, STEP, pass_key, remember_rate
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.store import Keys
from influence_cli.store.keys import digest_of_sorted, fingerprint
from influence_cli.store.shards import MERGE_ROWS, positions, unique

if TYPE_CHECKING:
    from influence_cli.methods.bif import BIF

Floats = NDArray[np.float64]
MOMENTS = ("first", "beyond", "squares", "first_others", "beyond_others", "products")  # of ``CoMoments``
WATCHED = 10  # fit rows whose losses are kept draw by draw


@dataclass(eq=False)
class Taken:
    """What was seen at the draws so far; ``moments`` and entries of the lists are never changed in place."""

    moments: CoMoments
    phi: list[Floats]  # [k] a draw
    watched: list[Floats]  # [10] a draw
    batch_loss: list[float]


class ChainRunner:
    """Runs a method's chains, whose observables are losses of some train rows and values of objectives."""

    def __init__(
        self, run: Run, session: Session, at: MemberModel, name: str, rows: Any, objectives: list[str]
    ) -> None:
        """Nothing is drawn yet; ``rows`` are the train rows that lack moments."""
        self.run, self.session, self.name, self.member = run, session, name, at.member
        self.method: BIF = run.samplers[name]
        self.curvature = open_fit_rows(run, session, at.model)
        self.fit = FitLoss(self.curvature)
        self.rows = RepeatedRows(self.curvature, rows, held=session.decoded)
        self.place = {row: k for k, row in enumerate(rows.index.tolist())}
        self.phi = PhiValues(run, session, self.curvature, at.model, objectives)
        self.seed = self.method.sampling(run.spec.seed)["seed"]
        self.law, self.facts = law_of(run, session, name, at.member, self.fit)
        self.spent = {STEP: 0.0, LOSS: 0.0}

    @property
    def observed(self) -> int:
        """How many losses are taken at every draw: one a row."""
        return len(self.place)

    def run_chain(self, number: int, interim: KeptInterim) -> tuple[Taken, dict[str, Any]]:
        """One chain from the checkpoint, or from where a run before this one left it; and what it found."""
        stream, start = f"{self.name}:{self.seed}:{number}", self.fit.start()
        size = self.facts["batch"]
        state, taken = self._resumed(interim.load(), start)
        watched = np.arange(min(WATCHED, self.fit.rows))
        steps, diverged = self.method.steps(self.law.burn_in), None

        def gradient(w: Tensor, step: int) -> tuple[float, Tensor]:
            loss, g = self.fit.at(w, chosen_rows(stream, step, self.fit.rows, size))
            return loss, (g + self.method.l2 * w if self.method.l2 else g)

        what = f"{self.name} chain {number + 1} of {self.method.chains}"
        with self.session.listener.progress(what, steps, "steps", done=state.step) as progress:
            while state.step < steps:
                begun = time.perf_counter()
                state, loss = advanced(state, self.law, gradient, start, stream)
                self.spent[STEP] += time.perf_counter() - begun
                if not np.isfinite(loss) or not bool(state.w.isfinite().all()):
                    diverged = state.step
                    break
                after = state.step - self.law.burn_in
                if after > 0 and after % self.method.thin == 0:
                    begun = time.perf_counter()
                    taken = self._with_draw(taken, state.w, watched, loss)
                    self.spent[LOSS] += time.perf_counter() - begun
                interim.offer(functools.partial(_state, state, taken, len(taken.phi)))
                progress.advance(1)
        return taken, {**self.facts, "diverged": diverged, "draws": len(taken.phi)}

    def _with_draw(self, taken: Taken, w: Tensor, watched: NDArray[np.int64], loss: float) -> Taken:
        parameters = self.fit.named(w)
        losses = self.losses(parameters)
        phi = np.array(list(self.phi.at(parameters).values()))
        taken.phi.append(phi)
        taken.watched.append(self.fit.losses_at(w, watched))
        taken.batch_loss.append(loss)
        return Taken(taken.moments.with_draw(losses, phi), taken.phi, taken.watched, taken.batch_loss)

    def losses(self, parameters: dict[str, Tensor]) -> Floats:
        """Losses [n] of the train rows, float64."""
        found = np.empty(len(self.place))
        with torch.no_grad():
            for index, x, y in self.rows:
                losses = self.run.row_loss.rows(self.curvature.at.logits(x, parameters), y)
                found[[self.place[row] for row in index.tolist()]] = losses.double().cpu().numpy()
        return found

    def _resumed(self, kept: State | None, start: Tensor) -> tuple[ChainState, Taken]:
        count = len(self.phi.plain) + len(self.phi.groups) + len(self.phi.pairs) + len(self.phi.attacked)
        if kept is None or "first" not in kept:  # earlier versions kept moments around 0
            return ChainState(0, start), Taken(CoMoments.none(self.observed, count), [], [], [])
        w = torch.from_numpy(kept["w"]).to(start)
        v = torch.from_numpy(kept["v"]).to(start) if "v" in kept else None
        moments = CoMoments(int(kept["draws"][0]), *(kept[name] for name in MOMENTS))
        lists = (list(kept["phi"]), list(kept["watched"]), kept["batch_loss"].tolist())
        return ChainState(int(kept["step"][0]), w, v), Taken(moments, *lists)


def _state(state: ChainState, taken: Taken, draws: int) -> State:
    """What a chain goes on from."""
    found: State = {"step": np.array([state.step]), "w": state.w.detach().cpu().numpy().copy()}
    if state.v is not None:
        found["v"] = state.v.detach().cpu().numpy().copy()
    m = taken.moments
    found |= {"draws": np.array([m.draws]), "batch_loss": np.array(taken.batch_loss[:draws])}
    found |= {name: getattr(m, name) for name in MOMENTS}
    shapes = {"phi": len(m.products), "watched": len(taken.watched[0]) if taken.watched else 0}
    for name, width in shapes.items():
        found[name] = np.array(getattr(taken, name)[:draws], dtype=np.float64).reshape(draws, width)
    return found


def chain_pass(run: Run, session: Session, work: Work, at: MemberModel) -> Looped:
    """Run every chain of which rows lack their moments, and store these: several objectives share the draws."""
    wanted: dict[tuple[str, int], dict[ChainPart, Keys]] = {}
    for part, keys in work.in_pass("chains").items():
        if isinstance(part, ChainPart) and len(keys):
            wanted.setdefault((part.method, part.number), {})[part] = keys
    chains = _Chains(run, session, at)
    works = [
        (fingerprint("chain", 1, of=sorted(part.name for part in parts)), functools.partial(chains.draw, *key, parts))
        for key, parts in wanted.items()
    ]
    own: Iterable[list[tuple[str, Callable[[], None]]]] = [works]
    if session.sharing and session.group is not None:  # whoever is free takes the next
        own = ([works[k]] for k in session.group.units(len(works)))
    for some in own:
        session.store.claims.share(some, lambda: session.listener.note("waiting for chains that another process draws"))
    return Looped(chains.done, 0.0, [])


class _Chains:
    """Draws chains at a member, each unless another process has stored it meanwhile."""

    def __init__(self, run: Run, session: Session, at: MemberModel) -> None:
        self.run, self.session, self.at, self.done = run, session, at, 0
        self.runners: dict[tuple[str, bytes, tuple[str, ...]], ChainRunner] = {}

    def draw(self, name: str, number: int, parts: dict[ChainPart, Keys]) -> None:
        """One chain, with the moments of the rows that lacked them when the work was planned."""
        run, session = self.run, self.session
        session.forget_folders()
        if not any(len(QUANTITIES[part.quantity].lacking(run, session, part)) for part in parts):
            return
        every = np.concatenate(list(parts.values()))
        chosen = np.flatnonzero(positions(run.train.row_keys, every) >= 0)
        first = unique(run.train.row_keys[chosen])
        rows = run.train.take(chosen[first])
        objectives = tuple(part.objective for part in parts)
        shared = name, rows.index.tobytes(), objectives
        if shared not in self.runners:
            self.runners[shared] = ChainRunner(run, session, self.at, name, rows, list(objectives))
        runner = self.runners[shared]
        interim = KeptInterim(run, session, *(part.name for part in parts), digest_of_sorted(rows.row_keys))
        with interim.kept(runner.curvature), differentiable_kernels(runner.curvature.point.recurrent):
            taken, facts = runner.run_chain(number, interim)
            for part, keys in parts.items():
                _store(run, session, part, keys, rows, list(objectives).index(part.objective), taken, facts)
        if not interim.resumed and (not session.sharing or session.group is None or session.group.rank == 0):
            _remember(run, session, runner, len(rows))
        self.done += len(rows)


def choose_laws(run: Run, session: Session, work: Work, at: MemberModel) -> None:
    """Choose, where it is not stored, what chains draw from: once, before several processes run them."""
    asked = {part.method for part in work.in_pass("chains") if isinstance(part, ChainPart)}
    lacking = [n for n in sorted(asked) if session.store.chains.meta(names.law(run, n, at.member)) is None]
    for name in lacking:
        law_of(run, session, name, at.member, FitLoss(open_fit_rows(run, session, at.model)))


def _store(
    run: Run, session: Session, part: ChainPart, keys: Keys, rows: Any, k: int, taken: Taken, facts: dict[str, Any]
) -> None:
    """The chain's own file, and then the rows' moments in shards."""
    assert run.fit is not None
    width = len(taken.watched[0]) if taken.watched else 0
    tensors = {
        "phi": np.array([values[k] for values in taken.phi], dtype=np.float64),
        "watched": np.array(taken.watched, dtype=np.float64).reshape(len(taken.phi), width),
        "batch_loss": np.array(taken.batch_loss, dtype=np.float64),
    }
    about = {"about": part.of, "fit": run.fit.fingerprint, "law": names.law(run, part.method, part.member)}
    session.store.chains.write(part.name, tensors, {**about, "facts": facts})
    folder = QUANTITIES[part.quantity].folder(run, session, part)
    places, m = np.flatnonzero(positions(rows.row_keys, keys) >= 0), taken.moments
    for first in range(0, len(places), MERGE_ROWS):
        some = places[first : first + MERGE_ROWS]
        arrays = {"mean": m.mean[some], "squares": m.squares[some], "products": m.products[k][some]}
        folder.write(rows.row_keys[some], {**arrays, "payload_keys": rows.payload_keys[some]})


def _remember(run: Run, session: Session, runner: ChainRunner, rows: int) -> None:
    """Seconds a row, for the next plan."""
    steps, draws = runner.method.steps(runner.law.burn_in), runner.method.draws
    counts = {STEP: steps * runner.facts["batch"], LOSS: draws * (rows + len(run.target))}
    for kind, count in counts.items():
        remember_rate(session, pass_key(run, session, kind), count, runner.spent[kind])
        runner.spent[kind] = 0.0
