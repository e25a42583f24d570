"""The weights of members that training went on to: from the store, or trained now, one after another.

Every step is a function of the walk and the fit rows alone: the order of the rows in an epoch is drawn from (seed,
member, epoch) over rows in the order of their keys, so that the weights do not depend on the order of a manifest.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.errors import ModelError
from influence_cli.methods.stored import Place
from influence_cli.model.checkpoints import Checkpoint
from influence_cli.model.walk import Walk
from influence_cli.stages.grads.further import open_fit_rows
from influence_cli.stages.run import names
from influence_cli.stages.run.members import member_at
from influence_cli.stages.run.rates import STEP, pass_key, remember_rate
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session

if TYPE_CHECKING:
    from torch import Tensor, nn

    from influence_cli.curvature.further import FitLoss


class WalkedWeights:
    """The selected parameters of members of further training; fit rows are opened once, where one has to be trained."""

    def __init__(self, run: Run, session: Session) -> None:
        """Nothing is trained yet."""
        self.run, self.session = run, session
        self._opened: dict[str, FitLoss] = {}

    def of(self, model: nn.Module, checkpoint: Checkpoint, walk: Walk) -> dict[str, Tensor]:
        """The selected parameters by name; the members before it are trained where they lack.

        Raises:
            ModelError: the loss stopped being finite.
        """
        stored = self._stored(checkpoint, walk)
        if stored is None:
            self._train(model, checkpoint, walk)
            stored = self._stored(checkpoint, walk)
        assert stored is not None
        return stored

    def _stored(self, checkpoint: Checkpoint, walk: Walk) -> dict[str, Tensor] | None:
        import torch

        found = self.session.store.weights.read(names.walked(self.run, checkpoint.digest, walk))
        return None if found is None else {n: torch.from_numpy(a.copy()) for n, a in found.items()}

    def _train(self, model: nn.Module, checkpoint: Checkpoint, walk: Walk) -> None:
        """From the nearest member before it that is stored, or from the checkpoint."""
        from influence_cli.engines.point import differentiable_kernels

        before, lacking, known = walk, [walk], None
        while (previous := before.before) is not None and (known := self._stored(checkpoint, previous)) is None:
            lacking.insert(0, previous)
            before = previous
        if checkpoint.digest not in self._opened:
            from influence_cli.curvature.further import FitLoss

            opened = open_fit_rows(self.run, self.session, model)
            self._opened[checkpoint.digest] = FitLoss(opened)
            held = opened.head_inputs()
            self.session.head_inputs = None if held is None else (checkpoint.digest, held)
        fit = self._opened[checkpoint.digest]
        start = fit.start()
        with differentiable_kernels(fit.curvature.point.recurrent):
            w = start if known is None else self._flat(fit, known)
            for each in lacking:
                with self.session.store.claims.wait(names.walked(self.run, checkpoint.digest, each), self._say_waiting):
                    known = self._stored(checkpoint, each)  # by another process, meanwhile
                    w = self._flat(fit, known) if known else self._trained(fit, checkpoint, each, w, start)

    def _say_waiting(self) -> None:
        self.session.listener.note("waiting for a member that another process trains")

    def _flat(self, fit: FitLoss, parameters: dict[str, Tensor]) -> Tensor:
        import torch

        c = fit.curvature
        return torch.cat([parameters[n].reshape(-1) for n in c.layout]).to(c.device, c.dtype)

    def _trained(self, fit: FitLoss, checkpoint: Checkpoint, walk: Walk, w: Tensor, start: Tensor) -> Tensor:
        """The member's weights, from those of the one before it, once they are stored."""
        import torch

        steps, size = walk.steps(fit.rows), min(walk.batch, fit.rows)
        per_epoch, velocity, order = -(-fit.rows // size), torch.zeros_like(w), np.arange(fit.rows)
        started = time.perf_counter()
        with self.session.listener.progress(f"further training, member {walk.member + 1}", steps, "steps") as progress:
            for step in range(steps):
                epoch, position = divmod(step, per_epoch)
                if position == 0:
                    order = np.random.default_rng([walk.seed, walk.member, epoch]).permutation(fit.rows)
                loss, gradient = fit.at(w, order[position * size : (position + 1) * size])
                if not np.isfinite(loss):
                    raise self._diverged(checkpoint, walk, f"at step {step}")
                velocity = walk.momentum * velocity + gradient + walk.l2 * w
                w = w - walk.rate_at(step, steps) * velocity
                progress.advance(1)
        if not np.isfinite(fit.at(w)[0]):
            raise self._diverged(checkpoint, walk, "after its last step")
        rows = steps * size
        remember_rate(self.session, pass_key(self.run, self.session, STEP), rows, time.perf_counter() - started)
        self._store(fit, checkpoint, walk, w, start, steps)
        return w

    def _diverged(self, checkpoint: Checkpoint, walk: Walk, when: str) -> ModelError:
        """The error of a member whose loss is no number."""
        walking = [n for n, ms in self.run.members_of.items() if any(m.walk is not None for m in ms)]
        rate = ", ".join(f"--set {name}.rate={walk.rate / 10:.2g}" for name in walking)
        what = f"further training diverges: the loss of member {walk.member + 1} is not finite {when}"
        return ModelError(what, where=checkpoint.locator, fix=f"a smaller rate: {rate}")

    def _store(self, fit: FitLoss, checkpoint: Checkpoint, walk: Walk, w: Tensor, start: Tensor, steps: int) -> None:
        assert self.run.fit is not None
        about: dict[str, Any] = {
            "member": walk.member + 1,
            "steps": steps,
            "train_loss": fit.at(w)[0],
            "start_loss": fit.at(start)[0],
            "distance": float((w - start).norm()),
            "size": float(start.norm()),
            "fit": self.run.fit.fingerprint,
            "outputs": names.outputs(member_at(self.run, self.session.runtime, Place(checkpoint, walk=walk))),
        }
        tensors = {n: p.detach().cpu().numpy() for n, p in fit.named(w).items()}
        self.session.store.weights.write(names.walked(self.run, checkpoint.digest, walk), tensors, about)
