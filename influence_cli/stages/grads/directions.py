"""Pass V at one member: every direction that is missing, of whatever kind its objective is, with its parts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from influence_cli.stages.grads.group_parts import group_parts
from influence_cli.stages.grads.row_pass import batch_size
from influence_cli.stages.run.job import Job
from influence_cli.stages.run.plan import Work, timing_key

if TYPE_CHECKING:
    from influence_cli.data.manifest import Payload
    from influence_cli.engines.direction import Attacked, Measured
    from influence_cli.engines.point import Point


def measure(job: Job, work: Work, point: Point, payloads: dict[int, Payload], what: str) -> None:
    """Measure and store the directions that the work lacks: of means of rows in one pass, then of groups."""
    from influence_cli.engines.direction import measure_directions
    from influence_cli.engines.group_direction import Grouped, measure_group_directions
    from influence_cli.stages.grads.attacked_rows import attacked_rows

    assert job.model is not None
    wanted = {name: job.objectives[name] for name in work.directions}
    of_groups = {n: Grouped(o, job.groups[n].index) for n, o in wanted.items() if "groups" in o.needs}
    of_rows = {n: o for n, o in wanted.items() if n not in of_groups}
    attacked: dict[str, Attacked] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name in of_rows:
        if job.attack(name) is not None:
            attacked[name], about = attacked_rows(job, name, point.model, payloads, batch_size(job))
            parts[name] = {"attack": about}
    started, passes = time.perf_counter(), (1 if of_rows else 0) + (1 + len(of_groups) if of_groups else 0)
    measured: dict[str, Measured] = {}
    given = (point, job.model, job.target, payloads)
    speed = (batch_size(job), job.runtime.workers)
    with job.listener.progress(f"direction, {what}", passes * len(job.target), "target rows") as progress:
        if of_rows:
            measured |= measure_directions(*given, of_rows, *speed, progress, attacked, job.held)
        if of_groups:
            found, values = measure_group_directions(*given, of_groups, *speed, progress)
            measured |= found
            parts |= {name: group_parts(job, name, values[name]) for name in of_groups}
    took = time.perf_counter() - started
    job.store.write_timing(timing_key(job, True, target=True), took / len(job.target))
    for objective, m in measured.items():
        more = parts.get(objective)
        if more is not None and "attacked_accuracy" in m.meta:
            more = {**more, "attacked_accuracy": m.meta.pop("attacked_accuracy")}
        about = {**m.meta, "objective": objective, "halves": m.half is not None}
        about |= {} if more is None else {"parts": more}
        if m.half is not None and work.halves:
            job.store.write_direction(job.direction(work.member, objective, half=True), m.half, about)
        job.store.write_direction(job.direction(work.member, objective), m.q, about)
