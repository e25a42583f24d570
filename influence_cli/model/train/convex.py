"""Optimizer ``lbfgs``: the ``linear`` model at the one optimum of its penalised training loss, in float64.

The name is that of scikit-learn's solver of the same problem; the steps are Newton's, which end at a gradient norm of
1e-10 or below.  Nothing is random: neither start, seed, order nor batch size changes the result.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from influence_cli.errors import ModelError, UsageError
from influence_cli.maths.outputs_apart import Apart, fit_apart
from influence_cli.maths.softmax_regression import TOLERANCE, Regression, fit
from influence_cli.model.class_order import reordered
from influence_cli.model.examples import Examples, to_input
from influence_cli.model.losses import loss_of
from influence_cli.model.train.recipe import LBFGS, Recipe


def check_convex(recipe: Recipe, model: str, seeds: int = 1) -> None:
    """Refuse ``lbfgs`` where it cannot mean one optimum.

    Raises:
        UsageError: another model, no weight decay, or several seeds, which would all be the same.
    """
    if recipe.optimizer != LBFGS:
        return
    if model != "linear":
        what = f"--optimizer lbfgs cannot train {model}: only the linear model's loss has one optimum to be found"
        raise UsageError(what, fix="pass --model linear, or another --optimizer")
    if recipe.weight_decay <= 0:
        what = "--optimizer lbfgs needs --weight-decay above 0: without it there may be no optimum, and never one alone"
        raise UsageError(what, fix="pass --weight-decay 1e-4 or more")
    if seeds > 1:
        what = f"--seeds {seeds} with --optimizer lbfgs: it is deterministic, so every seed gives the same model"
        raise UsageError(what, fix="leave --seeds out")


def train_convex(model: nn.Module, data: Examples, recipe: Recipe) -> int:
    """Fit a linear model in place, in float64, from the weights it has; returns the number of steps.

    Raises:
        ModelError: rounding or the data kept it from a gradient norm of 1e-10.
    """
    check_convex(recipe, data.spec.name)
    keep = np.flatnonzero(data.weights > 0)
    x = inputs_with_bias(data)[keep]
    model.double()
    parts = loss_of(data.spec).apart()
    if parts is None:
        labels = reordered(data.labels[keep], data.spec.order)
        problem = Regression(x, labels, data.weights[keep], data.spec.num_classes, recipe.weight_decay)
        found = fit(problem, parameters_of(model))
    else:
        labels = data.labels[keep].reshape(len(keep), -1).astype(np.float64)
        apart = Apart(x, labels, data.weights[keep], parts, recipe.weight_decay)
        found = fit_apart(apart, parameters_of(model))
    if not found.converged:
        what = f"lbfgs stopped at a gradient norm of {found.gradient_norm:.2g}, above {TOLERANCE:g}"
        raise ModelError(what, fix="standardise the features, or raise --weight-decay")
    with torch.no_grad():
        model.get_parameter("head.weight").copy_(torch.from_numpy(found.theta[:, :-1]))
        model.get_parameter("head.bias").copy_(torch.from_numpy(found.theta[:, -1]))
    model.eval()
    return found.steps


def inputs_with_bias(data: Examples) -> NDArray[np.float64]:
    """Model inputs [n, d + 1] in float64, the last column 1; made once for a set of decoded rows."""
    if data.inputs is None:
        inputs = to_input(data.at(slice(None)), data.spec, torch.float64).flatten(1).numpy()
        data.inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    return data.inputs


def parameters_of(model: nn.Module) -> NDArray[np.float64]:
    """A linear model's weights and, as the last column, biases: [C, d + 1]."""
    weight, bias = (model.get_parameter(name).detach().cpu().double() for name in ("head.weight", "head.bias"))
    return torch.cat([weight, bias[:, None]], 1).numpy()
