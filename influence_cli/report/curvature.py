"""What a method found of its curvature, in a sentence: which matrix, over which rows, how damped, how well inverted.

The facts tell which sentence it is: each of the first names below is a fact of one kind of inverse alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Facts = Mapping[str, Any]


def curvature_sentence(facts: Facts, options: Facts) -> str:
    """The sentence of some facts, found with some options; facts of no known kind as they stand."""
    return next((say(facts, options) for name, say in SENTENCES.items() if name in facts), _plain(facts))


def _by_layers(f: Facts, options: Facts) -> str:
    return (
        f"{f['mode']} of {f['covered']:,} of {f['parameters']:,} parameters in {f['layers']} layers over {_rows(f)} in "
        f"{f['precision']}, {f['labels']} labels, l2 {f['l2']:g}; damping {f['smallest_damping']:.3g} to "
        f"{f['largest_damping']:.3g} a layer{_rule(f)}, condition number of a layer up to {f['condition_number']:.3g}"
    )


def _by_tensors(f: Facts, options: Facts) -> str:
    return (
        f"{f['tensors']} tensors of {f['parameters']:,} parameters over {f['fit_rows']:,} fit rows in "
        f"{f['precision']}, l2 {f['l2']:g}; lambda {f['smallest_lambda']:.3g} to {f['largest_lambda']:.3g}{_rule(f)}"
    )


def _by_series(f: Facts, options: Facts) -> str:
    residual = f.get("residual")
    left = "" if residual is None else f"; residual over all of these rows {residual:.2g} of the direction"
    again = ", after the series diverged at a tenth of it" if f["retried"] else ""
    by = f" preconditioned by {f['preconditioner']}" if "preconditioner" in f else ""
    return (
        f"{_opening(f)}; c {f['series_scale']:.3g}{again}, {f['repeats']} x {f['depth']:,} batches of {f['batch']}{by}"
        f"{left}; {_stationarity(f)}"
    )


def _by_iterations(f: Facts, options: Facts) -> str:
    came = "" if f["converged"] else ", NOT CONVERGED"
    by = f" preconditioned by {f['preconditioner']}" if "preconditioner" in f else ""
    solve = f"{f['iterations']} iterations{by}, residual {f['residual']:.2g} of the direction{came}"
    return f"{_opening(f)}; {solve}; {_stationarity(f)}"


def _by_ritz_pairs(f: Facts, options: Facts) -> str:
    vectors = f"{f['vectors']} Lanczos vectors" + (" (complete)" if f["complete"] else "")
    negative = f", {f['negative']} negative" if f["negative"] else ""
    beyond = "the rest as if of the smallest" if options.get("complement") else "the rest is left out"
    return (
        f"{_opening(f)}; {vectors}, {f['kept']} Ritz values kept from {f['smallest_kept']:.3g} to "
        f"{f['largest_kept']:.3g}{negative}, known to {f['ritz_residual']:.2g} of the largest; "
        f"{f['share_of_direction']:.1%} of the direction's square lies in their span, {beyond}; {_stationarity(f)}"
    )


def _by_segments(f: Facts, options: Facts) -> str:
    table = "; ".join(
        f"segment {s['segment']} of {f['of']}: steps {s['after'] + 1:,} to {s['last']:,}, {s['checkpoints']} "
        f"checkpoints, rates in all {s['travelled']:.3g}, times the largest eigenvalue "
        f"{s['travelled'] * s['largest_eigenvalue']:.3g}, "
        f"{s['share_of_direction']:.1%} of the direction left at the end"
        for s in f["segments"]
    )
    return (
        f"{f['mode']} of {f['covered']:,} of {f['parameters']:,} parameters over {_rows(f)} in {f['precision']}, "
        f"{f['labels']} labels, l2 {f['l2']:g}, damping {f['damping']:g}; {table}"
    )


def _by_projection(f: Facts, options: Facts) -> str:
    of = "all" if f["whole"] else f"{f['projected_columns']:,} projected"
    return (
        f"Gram matrix of margins' gradients, {of} of {f['parameters']:,} parameters, over {_rows(f)} in "
        f"{f['precision']}, rank {f['rank']:,}; ridge {f['ridge']:.3g}{_rule(f)}, condition number "
        f"{f['condition_number']:.3g}"
    )


def _by_matrix(f: Facts, options: Facts) -> str:
    return (
        f"{f['mode']} of {f['parameters']:,} parameters over {f['fit_rows']:,} fit rows, eigenvalues "
        f"{f['smallest_eigenvalue']:.3g} to {f['largest_eigenvalue']:.3g} with l2 {f['l2']:g}; damping "
        f"{f['damping']:.3g}{_rule(f)}, condition number {f['condition_number']:.3g}, {_stationarity(f)}"
    )


SENTENCES: dict[str, Callable[[Facts, Facts], str]] = {
    "segments": _by_segments,
    "layers": _by_layers,
    "tensors": _by_tensors,
    "series_scale": _by_series,
    "iterations": _by_iterations,
    "ritz_residual": _by_ritz_pairs,
    "projected_columns": _by_projection,
    "condition_number": _by_matrix,
}


def _opening(f: Facts) -> str:
    """Which matrix, and how it is damped."""
    return (
        f"{f['mode']} of {f['parameters']:,} parameters over {_rows(f)} in {f['precision']}, l2 {f['l2']:g}, damping "
        f"{f['damping']:.3g}{_rule(f)}"
    )


def _rows(f: Facts) -> str:
    rows, every = f["product_rows"], f["fit_rows"]
    return f"{every:,} fit rows" if rows == every else f"{rows:,} of {every:,} fit rows"


def _rule(f: Facts) -> str:
    return " by the default rule" if f["damping_by_rule"] else ""


def _stationarity(f: Facts) -> str:
    return f"gradient norm of the training objective {f['gradient_norm']:.3g}"


def _plain(facts: Facts) -> str:
    """Facts by name as they stand."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
