"""Which module gives the row gradient of which parameter: found out by running a few rows, and verified exactly.

A parameter begins at the modules that own it.  Rows must lead a module's inputs and outputs: two forward passes, of 2
and of 3 rows, show which do.  Then the blocks' sum_i c_i g_i, with signs in c and a random cotangent, is compared with
reverse mode for every parameter.  One that is used outside of its module, that its module hands to a function, or whose
module mixes rows, differs, and moves to the enclosing module until it agrees.  What no module gives is not covered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from influence_cli.engines.batch_size import out_of_memory
from influence_cli.engines.layerwise.blocks import BlockLayout, Site
from influence_cli.engines.layerwise.own_forward import OwnForward
from influence_cli.engines.layerwise.rules import rule_of
from influence_cli.engines.layerwise.tape import Tape, WatchedModel
from influence_cli.engines.point import SINGLE, differentiable_kernels, only_float32
from influence_cli.errors import ModelError
from influence_cli.model.parameters import pulled

FEW, MORE = 2, 3  # rows of the two passes that tell which dimension is that of rows
LEAST, MOST = 4, 16  # rows on which the blocks are compared with reverse mode


@dataclass(frozen=True)
class Coverage:
    """How many selected parameters the blocks reach, and those that they do not, by module."""

    parameters: int
    covered: int
    missing: dict[str, tuple[str, ...]]  # module -> parameters

    @property
    def share(self) -> float:
        """The share of parameters covered."""
        return self.covered / self.parameters


@dataclass
class _Place:
    """Where a parameter's gradient is taken: its owners by the fast rules where they have one, or one module's own."""

    modules: tuple[str, ...]
    general: bool = False


def plan_blocks(model: WatchedModel, x: Tensor) -> Coverage:
    """What a model's blocks cover, after setting them.

    Raises:
        ModelError: the outputs of a row depend on the other rows of its batch.
    """
    # selected names by the identity of the model's own parameters; a tied tensor has one name
    names = {id(p): n for n, p in model.point.model.named_parameters() if n in model.point.selected}
    owners = _owners(model, names)
    model.watched, model.batched = tuple(model.modules), {}
    some = _spread(x, min(max(LEAST, len(x)), MOST))
    leading = _rows_lead(model, x) - model.parted
    place = {n: _settle(model, _Place(owners[n]), leading) for n in model.point.selected}
    lost: set[str] = set()
    while True:
        _set_blocks(model, {n: p for n, p in place.items() if n not in lost}, names)
        tape = model.run(some)
        if parted := model.called_on_parts(tape):
            model.parted |= parted
            leading -= parted
            place = {n: _settle(model, p, leading) for n, p in place.items()}
            continue
        wrong = [n for n in _differing(model, some, tape) if n not in lost]
        if not wrong:
            break
        for n in wrong:
            above = _settle(model, _above(place[n]), leading) if place[n] != _Place(("",), True) else None
            if above is None or above == place[n]:
                lost.add(n)
            else:
                place[n] = above
    return _coverage(model, owners, lost)


def _spread(x: Tensor, count: int) -> Tensor:
    """So many rows of x, from all over it; some twice where it has fewer."""
    return x[torch.arange(count, device=x.device) * max(1, len(x) // count) % len(x)]


def _owners(model: WatchedModel, names: dict[int, str]) -> dict[str, tuple[str, ...]]:
    """Modules that hold each selected parameter themselves."""
    found: dict[str, list[str]] = {n: [] for n in names.values()}
    for module_name, module in model.modules.items():
        for p in dict.fromkeys(id(p) for p in module._parameters.values() if p is not None):
            if p in names:
                found[names[p]].append(module_name)
    return {n: tuple(modules) for n, modules in found.items()}


def _rows_lead(model: WatchedModel, x: Tensor) -> set[str]:
    """Modules that are called, with rows as the leading dimension of all outputs that matter; notes their inputs."""
    shapes: list[dict[str, list[tuple[list[int], list[int]]]]] = []
    for count in (FEW, MORE):
        tape = model.run(x[torch.arange(count, device=x.device) % len(x)])
        by_module: dict[str, list[tuple[list[int], list[int]]]] = {}
        for name, call in tape.calls(torch.ones_like(tape.logits)):
            sizes = [len(t) if isinstance(t, Tensor) and t.ndim else 0 for t in call.leaves]
            used = [0 if d is None else (len(d) or -1) if d.ndim else -1 for d in call.gradients]
            by_module.setdefault(name, []).append((sizes, used))
        shapes.append({name: calls for name, calls in by_module.items() if name not in tape.changed})
    few, more = shapes
    leading: set[str] = set()
    for name, calls in few.items():
        others = more.get(name, [])
        if len(others) != len(calls):
            continue
        masks: set[tuple[bool, ...]] = set()
        fits = True
        for (a, d), (a_more, d_more) in zip(calls, others, strict=True):
            if len(a) != len(a_more) or len(d) != len(d_more):
                fits = False
                break
            masks.add(tuple(_scales(m, n) for m, n in zip(a, a_more, strict=True)))
            fits &= all((m == n == 0) or _scales(m, n) for m, n in zip(d, d_more, strict=True))
        if fits and len(masks) == 1:
            model.batched[name] = masks.pop()
            leading.add(name)
    return leading


def _scales(few: int, more: int) -> bool:
    return few > 0 and few % FEW == 0 and few * MORE == more * FEW


def _above(place: _Place) -> _Place:
    """The smallest module that holds all of a place's modules and is not one of its fast rules."""
    parts = [name.split(".") if name else [] for name in place.modules]
    shared: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    if len(place.modules) == 1 and place.general:
        shared = shared[:-1]
    return _Place((".".join(shared),), True)


def _settle(model: WatchedModel, place: _Place, leading: set[str]) -> _Place:
    """The place itself, or the first one above it whose modules are called on rows."""
    while True:
        usable = all(m in leading for m in place.modules)
        if usable and not place.general and len(place.modules) > 1:
            usable = all(rule_of(model.modules[m]) is not None for m in place.modules)
        if usable or place == _Place(("",), True):
            return place
        called = [m for m in place.modules if m in leading]
        if not place.general and called and all(rule_of(model.modules[m]) is not None for m in called):
            return _Place(tuple(called))  # an owner that is never called adds nothing, or the comparison will tell
        place = _above(place)


def _set_blocks(model: WatchedModel, place: dict[str, _Place], names: dict[int, str]) -> None:
    """One site for each module and rule; sites that share a parameter are one block."""
    sites: dict[tuple[str, bool], list[str]] = {}
    for name, where in place.items():
        for module in where.modules:
            fast = not where.general and rule_of(model.modules[module]) is not None
            sites.setdefault((module, fast), []).append(name)
    groups: list[tuple[set[str], list[tuple[str, bool]]]] = []
    for key, own in sites.items():
        joined = [g for g in groups if g[0] & set(own)]
        parameters, keys = set(own).union(*(g[0] for g in joined)), [k for g in joined for k in g[1]] + [key]
        groups = [g for g in groups if g not in joined] + [(parameters, keys)]
    order = {n: k for k, n in enumerate(model.point.selected)}
    blocks: list[BlockLayout] = []
    for parameters, keys in sorted(groups, key=lambda g: min(order[n] for n in g[0])):
        shapes = {n: model.point.selected[n].shape for n in sorted(parameters, key=order.__getitem__)}
        made = tuple(_site(model, module, fast, sites[module, fast], names) for module, fast in keys)
        blocks.append(BlockLayout("+".join(module or "model" for module, _ in keys), shapes, made))
    model.blocks = tuple(blocks)
    model.watched = tuple(dict.fromkeys(s.module_name for b in blocks for s in b.sites))


def _site(model: WatchedModel, module_name: str, fast: bool, own: list[str], names: dict[int, str]) -> Site:
    module = model.modules[module_name]
    if fast:
        held = {k: names[id(p)] for k, p in module._parameters.items() if p is not None and id(p) in names}
        rule = rule_of(module, {k: model.point.selected[n] for k, n in held.items()})
        assert rule is not None
        return Site(module_name, {k: n for k, n in held.items() if n in own}, rule)
    local = {k: names[id(p)] for k, p in module.named_parameters() if id(p) in names}  # by their first name within it
    values = {k: model.point.selected[n] for k, n in local.items()}
    taken = {k: n for k, n in local.items() if n in own}
    return Site(module_name, taken, OwnForward(module, values, tuple(taken), model.point.recurrent))


def _differing(model: WatchedModel, some: Tensor, tape: Tape) -> list[str]:
    """Parameters for which the blocks' weighted sum of the row gradients of ``tape`` is not reverse mode's.

    Raises:
        ModelError: rows of a batch depend on each other.
    """
    point = model.point
    generator = torch.Generator().manual_seed(0)
    c = (torch.randint(0, 2, (len(some),), generator=generator) * 2 - 1).to(point.device, point.dtype)
    c = c * (torch.arange(len(some), device=point.device) % LEAST + 1)
    parameters = point.leaves()
    with torch.enable_grad(), differentiable_kernels(point.recurrent):
        logits = point.logits(some, parameters)
        v = torch.randn(logits.shape, generator=generator).to(point.device, point.dtype)
        expected = pulled([(c[:, None] * v * logits).sum()], list(parameters.values()), [None])
    _check_rows_apart(model, some, tape.logits)
    found: dict[str, Tensor] = {}
    for block in tape.pull(v):
        try:
            found |= block.weighted_sum(c)
        except RuntimeError as error:  # rows do not lead its inputs after all, so that its parameters differ
            if out_of_memory(error):
                raise
    tight = 1e-9 if point.dtype == torch.float64 else 1e-3
    largest = max(float(g.abs().max()) for g in expected)
    wrong, rounded = list[str](), 0
    for name, g in zip(parameters, expected, strict=True):
        off = float((found.get(name, torch.zeros_like(g)) - g).abs().max())
        size = float(g.abs().max()) + 1e-3 * largest
        if not off <= tight * size:
            wrong.append(name)
            rounded += off <= SINGLE * size
    if point.dtype == torch.float64 and 2 * rounded > len(parameters):
        raise only_float32(f"{rounded} of {len(parameters)} gradients by layers have its rounding")
    return wrong


def _check_rows_apart(model: WatchedModel, x: Tensor, logits: Tensor) -> None:
    with torch.no_grad(), differentiable_kernels(model.point.recurrent):
        alone = model.point.logits(x[:1])
    tight = 1e-9 if model.point.dtype == torch.float64 else 1e-3
    off, size = float((alone - logits[:1]).abs().max()), max(1.0, float(logits.abs().max()))
    if model.point.dtype == torch.float64 and tight * size < off <= SINGLE * size:
        raise only_float32("logits of a row alone have its rounding")
    if not off <= tight * size:
        raise ModelError("the logits of a row depend on the other rows of its batch", fix="repair the model")


def _coverage(model: WatchedModel, owners: dict[str, tuple[str, ...]], lost: set[str]) -> Coverage:
    sizes = {n: p.numel() for n, p in model.point.selected.items()}
    missing: dict[str, list[str]] = {}
    for name in sorted(lost):
        missing.setdefault(owners[name][0] or "model", []).append(name)
    covered = sum(size for n, size in sizes.items() if n not in lost)
    return Coverage(sum(sizes.values()), covered, {m: tuple(ns) for m, ns in missing.items()})
