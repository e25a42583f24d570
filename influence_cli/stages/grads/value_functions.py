"""What maps a batch's row gradients to the values that rows lack; fitting what it takes, and what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from influence_cli.methods.protocol import OfBlocks
from influence_cli.stages.grads.preconditioning import about_curvature, fitted_curvature, missing_solves
from influence_cli.stages.run.job import Job, Member
from influence_cli.stages.run.row_values import lacking, value_name, values_of
from influence_cli.store import Keys

if TYPE_CHECKING:
    import torch
    from torch import nn


def value_functions(
    job: Job, member: Member, values: dict[str, Keys], model: nn.Module, device: torch.device, batch_size: int
) -> dict[str, OfBlocks]:
    """By method whose value some rows lack: from the blocks of a batch to the rows' values."""
    from influence_cli.engines.row_values import sum_over

    found: dict[str, OfBlocks] = {}
    for name in lacking(values):
        value = job.values[name]
        if value.of_block is not None:
            found[name] = sum_over(value.of_block)
            continue
        _note_solves(job, name, values[name])
        curvature = fitted_curvature(job, name, member, model, device, batch_size)
        found[name], facts = job.solvers[name].form(curvature)
        assert job.fit is not None
        called, about = value_name(job, name, member)[0], about_curvature(job, facts, curvature)
        job.store.write_value_facts(called, job.fit.fingerprint, about)
    return found


def _note_solves(job: Job, name: str, keys: Keys) -> None:
    """Before values that are solved for row by row: what that costs, and how long it took before."""
    for solve in missing_solves(job, (), {name: keys}):
        seconds = "" if solve.seconds is None else f", about {solve.seconds:,.3g} seconds"
        job.listener.note(
            f"{name}: a series for each of {len(keys):,} rows, at most {solve.passes:,.0f} passes over {solve.rows:,} "
            f"fit rows in all{seconds}"
        )


def negative_values(job: Job) -> dict[str, int]:
    """By method with a value by curvature: how many training rows have a negative one, at its first member."""
    found: dict[str, int] = {}
    for name in job.values:
        if name in job.solvers:
            stored = values_of(job, name, job.method_members[name][0], job.train.row_keys)
            found[name] = int((stored < 0).sum())
    return found


def note_values(job: Job) -> None:
    """Say how many values by curvature are negative; a positive definite P has none."""
    for name, count in negative_values(job).items():
        text = f"{name}: {count:,} of {len(job.train):,} values of self-influence are negative"
        if count:
            job.listener.warn(f"{text}: its curvature is not positive definite, or its series is far from the inverse")
        else:
            job.listener.note(text)
