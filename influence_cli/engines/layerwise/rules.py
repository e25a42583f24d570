"""Row gradients of one module's own parameters, from its input a and the gradient d of its output.

For a batch of b rows, where a module is called on T positions a row and g_i is row i's gradient in its parameters:

    linear, conv    dW_i = sum_t d_it a_it^T,       db_i = sum_t d_it       (conv: a_it is the patch at position t)
    embedding       dW_i[k] = sum over t with token_it = k of d_it
    norms           dgamma_i = sum_t d_it * xhat_it,   dbeta_i = sum_t d_it

so that <g_i, U> needs no g_i: it is the sum over t of d_it . (U_W a_it + U_b).  Rows are the leading dimension of a and
d, k entries a row where a model folds more (windows, tokens) into it.  Dot products and norms are summed in float64.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

Named = dict[str, Tensor]  # by the module's own parameter name


class Rule(Protocol):
    """What a kind of module knows of its own parameters' row gradients, for b rows."""

    def dots(self, a: Tensor, d: Tensor, b: int, u: Named) -> Tensor:
        """<g_i, u> for every row, float64 [b]."""
        ...

    def gradients(self, a: Tensor, d: Tensor, b: int, names: tuple[str, ...]) -> Named:
        """g_i by parameter name, [b, *shape]."""
        ...

    def norms(self, a: Tensor, d: Tensor, b: int, names: tuple[str, ...]) -> Tensor | None:
        """|g_i|^2 for every row, float64 [b], where that is cheaper than from ``gradients``; else None."""
        ...

    def weighted(self, a: Tensor, d: Tensor, c: Tensor, names: tuple[str, ...]) -> Named:
        """sum_i c_i g_i by parameter name, for c [b]."""
        ...


def total(values: Tensor) -> Tensor:
    """Sums of values [b, ...] over all but the first dimension, float64 [b]."""
    return values.flatten(1).sum(1, dtype=torch.float64)


def by_row(d: Tensor, c: Tensor) -> Tensor:
    """Gradients d [b k, ...] with row i's entries times c_i [b]."""
    return (d.unflatten(0, (len(c), -1)) * c.to(d.dtype).reshape(-1, *[1] * d.ndim)).flatten(0, 1)


class Affine:
    """Linear layers and convolutions, as positions: a [b, T, G, I] and d [b, T, G, O] of G groups."""

    def __init__(self, module: nn.Module) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        self.shape, self.groups = weight.shape, 1

    def positions(self, a: Tensor, d: Tensor, b: int) -> tuple[Tensor, Tensor]:
        """Inputs [b, T, G, I] and output gradients [b, T, G, O]."""
        return a.reshape(b, -1, 1, a.shape[-1]), d.reshape(b, -1, 1, d.shape[-1])

    def apply(self, a: Tensor, u: Named) -> Tensor:
        """The layer with u in place of its parameters."""
        if "weight" in u:
            return F.linear(a, u["weight"], u.get("bias"))
        return u["bias"]

    def dots(self, a: Tensor, d: Tensor, b: int, u: Named) -> Tensor:
        """<g_i, u> = sum_t d_it . (U_W a_it + U_b), float64 [b]."""
        return total((self.apply(a, u) * d).reshape(b, -1))

    def gradients(self, a: Tensor, d: Tensor, b: int, names: tuple[str, ...]) -> Named:
        """Gradients dW [b, *W] and db [b, out]."""
        at, dt = self.positions(a, d, b)
        found: Named = {}
        if "weight" in names:
            found["weight"] = torch.einsum("btgo,btgi->bgoi", dt, at).reshape(b, *self.shape)
        if "bias" in names:
            found["bias"] = dt.sum(1).reshape(b, -1)
        return found

    def norms(self, a: Tensor, d: Tensor, b: int, names: tuple[str, ...]) -> Tensor | None:
        """The Gram form, where T^2 is below the size of the weight."""
        return self.gram([(a, d)], b, names)

    def gram(self, calls: list[tuple[Tensor, Tensor]], b: int, names: tuple[str, ...]) -> Tensor | None:
        """sum_tt' (d_t . d_t') (a_t . a_t' + 1) over the positions of all calls; None where it is not cheaper."""
        steps = sum(d.numel() for _, d in calls) // (b * self.shape[0])
        if "weight" not in names or steps * steps >= self.shape.numel() // self.groups:
            return None
        parts = [self.positions(a, d, b) for a, d in calls]
        at, dt = (torch.cat(some, 1).transpose(1, 2) for some in zip(*parts, strict=True))  # [b, G, T, .]
        gram = at @ at.mT + (1.0 if "bias" in names else 0.0)
        return total(gram * (dt @ dt.mT))

    def weighted(self, a: Tensor, d: Tensor, c: Tensor, names: tuple[str, ...]) -> Named:
        """sum_i c_i dW_i and sum_i c_i db_i."""
        d = by_row(d, c)
        found: Named = {}
        if "weight" in names:
            found["weight"] = d.flatten(0, -2).T @ a.flatten(0, -2)
        if "bias" in names:
            found["bias"] = d.flatten(0, -2).sum(0)
        return found


class Conv(Affine):
    """nn.Conv2d with any stride, padding, dilation and groups: a position is a patch."""

    def __init__(self, module: nn.Conv2d) -> None:
        super().__init__(module)
        self.module, self.groups = module, module.groups
        self.padding = list(module._reversed_padding_repeated_twice)
        self.padding_mode = "constant" if module.padding_mode == "zeros" else module.padding_mode

    def padded(self, a: Tensor) -> Tensor:
        """The input as the convolution sees it."""
        return F.pad(a, self.padding, self.padding_mode) if any(self.padding) else a

    def positions(self, a: Tensor, d: Tensor, b: int) -> tuple[Tensor, Tensor]:
        """Patches [b, T, G, I] and output gradients [b, T, G, O]."""
        m = self.module
        patches = F.unfold(self.padded(a), m.kernel_size, m.dilation, 0, m.stride)  # [b k, C |kernel|, L]
        at = patches.unflatten(0, (b, -1)).unflatten(2, (m.groups, -1))  # [b, k, G, I, L]
        dt = d.flatten(2).unflatten(0, (b, -1)).unflatten(2, (m.groups, -1))
        return at.permute(0, 1, 4, 2, 3).flatten(1, 2), dt.permute(0, 1, 4, 2, 3).flatten(1, 2)

    def apply(self, a: Tensor, u: Named) -> Tensor:
        """The convolution with u in place of its parameters."""
        if "weight" in u:
            return self.module._conv_forward(a, u["weight"], u.get("bias"))
        return u["bias"][:, None, None]

    def weighted(self, a: Tensor, d: Tensor, c: Tensor, names: tuple[str, ...]) -> Named:
        """sum_i c_i dW_i and sum_i c_i db_i, by one backward convolution."""
        d, m = by_row(d, c), self.module
        found: Named = {}
        if "weight" in names:
            steps: Any = (m.stride, 0, m.dilation, m.groups)  # annotated there as one number each
            found["weight"] = conv2d_weight(self.padded(a), list(self.shape), d, *steps)
        if "bias" in names:
            found["bias"] = d.sum((0, 2, 3))
        return found


class Embedding:
    """nn.Embedding: rows of the table, but not that of its padding index."""

    def __init__(self, module: nn.Embedding) -> None:
        self.shape, self.padding = module.weight.shape, module.padding_idx

    def _flat(self, a: Tensor, d: Tensor, b: int) -> tuple[Tensor, Tensor]:
        if self.padding is not None:
            d = d * (a != self.padding).unsqueeze(-1)
        return a.reshape(b, -1), d.reshape(b, -1, d.shape[-1])

    def dots(self, a: Tensor, d: Tensor, b: int, u: Named) -> Tensor:
        """<g_i, u> = sum_t d_it . U[token_it], float64 [b]."""
        at, dt = self._flat(a, d, b)
        return total(F.embedding(at, u["weight"]) * dt)

    def gradients(self, a: Tensor, d: Tensor, b: int, names: tuple[str, ...]) -> Named:
        """Gradients dW [b, tokens, width]."""
        at, dt = self._flat(a, d, b)
        table = dt.new_zeros(b, *self.shape)
        return {"weight": table.scatter_add_(1, at.unsqueeze(-1).expand_as(dt), dt)}

    def norms(self, a: Tensor, d: Tensor, b: int, names: tuple[str, ...]) -> Tensor | None:
        """Sum over t, t' of the same token of d_t . d_t', where T^2 is below the size of the table."""
        at, dt = self._flat(a, d, b)
        if at.shape[1] ** 2 >= self.shape.numel():
            return None
        return total((dt @ dt.mT) * (at[:, :, None] == at[:, None, :]))

    def weighted(self, a: Tensor, d: Tensor, c: Tensor, names: tuple[str, ...]) -> Named:
        """sum_i c_i dW_i."""
        at, dt = self._flat(a, by_row(d, c), len(c))
        return {"weight": dt.new_zeros(self.shape).index_add_(0, at.flatten(), dt.flatten(0, 1))}


class Norm:
    """Scale and shift after a normalisation whose output without them is ``xhat``."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.trailing = len(module.normalized_shape) if isinstance(module, nn.LayerNorm) else 0

    def xhat(self, a: Tensor) -> Tensor:
        """The normalised input, before scale and shift."""
        m = self.module
        if isinstance(m, nn.LayerNorm):
            return F.layer_norm(a, m.normalized_shape, None, None, m.eps)
        if isinstance(m, nn.GroupNorm):
            return F.group_norm(a, m.num_groups, None, None, m.eps)
        assert isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        return F.batch_norm(a, m.running_mean, m.running_var, None, None, False, 0.0, m.eps)

    def _over_positions(self, values: Tensor, b: int) -> Tensor:
        """Sums over positions [b, *parameter]: trailing dimensions of a LayerNorm, else channels in dimension 1."""
        if self.trailing:
            return values.reshape(b, -1, *values.shape[values.ndim - self.trailing :]).sum(1)
        return values.reshape(b, len(values) // b, values.shape[1], -1).sum((1, 3))

    def _spread(self, parameter: Tensor, like: Tensor) -> Tensor:
        return parameter if self.trailing else parameter.reshape(1, -1, *[1] * (like.ndim - 2))

    def dots(self, a: Tensor, d: Tensor, b: int, u: Named) -> Tensor:
        """<g_i, u> = sum_t d_it . (U_gamma * xhat_it + U_beta), float64 [b]."""
        value = self.xhat(a) * self._spread(u["weight"], a) if "weight" in u else 0.0
        value = value + self._spread(u["bias"], a) if "bias" in u else value
        return total((value * d).reshape(b, -1))

    def gradients(self, a: Tensor, d: Tensor, b: int, names: tuple[str, ...]) -> Named:
        """Gradients dgamma and dbeta, [b, *shape]."""
        found = {"weight": self._over_positions(d * self.xhat(a), b)} if "weight" in names else {}
        return {**found, "bias": self._over_positions(d, b)} if "bias" in names else found

    def norms(self, a: Tensor, d: Tensor, b: int, names: tuple[str, ...]) -> Tensor | None:
        """None: a norm's parameters are few."""
        return None

    def weighted(self, a: Tensor, d: Tensor, c: Tensor, names: tuple[str, ...]) -> Named:
        """sum_i c_i dgamma_i and sum_i c_i dbeta_i."""
        return {
            n: torch.einsum("b,b...->...", c.to(g.dtype), g) for n, g in self.gradients(a, d, len(c), names).items()
        }


def rule_of(module: nn.Module) -> Rule | None:
    """The fast rule of a module whose forward is that of its torch class; None where it has none."""

    def plain(*kinds: type[nn.Module]) -> bool:
        return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)

    if getattr(module, "parametrizations", None) is not None:
        return None
    if plain(nn.Linear):
        return Affine(module)
    if plain(nn.Conv2d) and isinstance(module, nn.Conv2d):
        return Conv(module)
    if plain(nn.Embedding) and isinstance(module, nn.Embedding):
        return None if module.max_norm is not None or module.scale_grad_by_freq else Embedding(module)
    if plain(nn.LayerNorm, nn.GroupNorm):
        return Norm(module)
    if plain(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and isinstance(module, nn.modules.batchnorm._BatchNorm):
        return Norm(module) if module.running_mean is not None else None
    return None
