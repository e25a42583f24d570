"""Row gradients of embeddings and norms, and the table of all modules that have a rule.

embedding       dW_i[k] = sum over t with token_it = k of d_it
norms           dgamma_i = sum_t d_it * xhat_it,   dbeta_i = sum_t d_it
next tokens     dW_i = sum_t c_it (p_it - e_it) h_it^T   (c: the gradient of the loss of token t, p: its probabilities)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence_cli.engines.layerwise.affine import Affine, Conv
from influence_cli.engines.layerwise.protocol import Named, Pair, Rule, by_row, total
from influence_cli.model.next_token import NextTokenLoss, blocks, slopes


class Embedding:
    """Embeddings: the rows of the table, but not that of the padding index."""

    def __init__(self, module: nn.Embedding) -> None:
        self.shape, self.padding = module.weight.shape, module.padding_idx

    def positions(self, a: Tensor, d: Tensor, b: int) -> tuple[Tensor, Tensor]:
        """Tokens [b, T] and gradients d [b, T, width], 0 at the padding index."""
        if self.padding is not None:
            d = d * (a != self.padding).unsqueeze(-1)
        return a.reshape(b, -1), d.reshape(b, -1, d.shape[-1])

    def dots(self, a: Tensor, d: Tensor, b: int, u: Named) -> Tensor:
        """<g_i, u> = sum_t d_it . U[token_it], float64 [b]."""
        at, dt = self.positions(a, d, b)
        return total(F.embedding(at, u["weight"]) * dt)

    def dots_by_position(self, a: Tensor, d: Tensor, b: int, u: Named) -> Tensor:
        """The summands d_it . U[token_it] of ``dots``, float64 [b, T]."""
        at, dt = self.positions(a, d, b)
        return (F.embedding(at, u["weight"]) * dt).sum(-1, dtype=torch.float64)

    def gradients(self, a: Tensor, d: Tensor, b: int, names: tuple[str, ...]) -> Named:
        """Gradients dW [b, tokens, width]."""
        at, dt = self.positions(a, d, b)
        table = dt.new_zeros(b, *self.shape)
        return {"weight": table.scatter_add_(1, at.unsqueeze(-1).expand_as(dt), dt)}

    def norms(self, calls: list[Pair], b: int, names: tuple[str, ...]) -> Tensor | None:
        """Sum over t, t' of the same token of d_t . d_t', of one call where T^2 is below the size of the table."""
        if len(calls) > 1 or (calls[0][0].numel() // b) ** 2 >= self.shape.numel():
            return None
        at, dt = self.positions(*calls[0], b)
        return total((dt @ dt.mT) * (at[:, :, None] == at[:, None, :]))

    def weighted(self, a: Tensor, d: Tensor, c: Tensor, names: tuple[str, ...]) -> Named:
        """sum_i c_i dW_i."""
        at, dt = self.positions(a, by_row(d, c), len(c))
        return {"weight": dt.new_zeros(self.shape).index_add_(0, at.flatten(), dt.flatten(0, 1))}


class Norm:
    """Scale and shift of the normalised input h: LayerNorm, GroupNorm, and BatchNorm in evaluation mode."""

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
        return total((self._along(a, u) * d).reshape(b, -1))

    def dots_by_position(self, a: Tensor, d: Tensor, b: int, u: Named) -> Tensor:
        """The summands of ``dots`` by position, float64 [b, T]."""
        values = self._along(a, u) * d
        over = tuple(range(values.ndim - self.trailing, values.ndim)) if self.trailing else (1,)
        return values.sum(over, dtype=torch.float64).reshape(b, -1)

    def _along(self, a: Tensor, u: Named) -> Tensor | float:
        """U_gamma * xhat_it + U_beta."""
        value = self.xhat(a) * self._spread(u["weight"], a) if "weight" in u else 0.0
        return value + self._spread(u["bias"], a) if "bias" in u else value

    def gradients(self, a: Tensor, d: Tensor, b: int, names: tuple[str, ...]) -> Named:
        """Gradients dgamma and dbeta, [b, *shape]."""
        found = {"weight": self._over_positions(d * self.xhat(a), b)} if "weight" in names else {}
        return {**found, "bias": self._over_positions(d, b)} if "bias" in names else found

    def norms(self, calls: list[Pair], b: int, names: tuple[str, ...]) -> Tensor | None:
        """None: a norm's parameters are few."""
        return None

    def weighted(self, a: Tensor, d: Tensor, c: Tensor, names: tuple[str, ...]) -> Named:
        """sum_i c_i dgamma_i and sum_i c_i dbeta_i."""
        return {
            n: torch.einsum("b,b...->...", c.to(g.dtype), g) for n, g in self.gradients(a, d, len(c), names).items()
        }


class NextToken:
    """Output layers with the cross-entropy of the next token: logits are made for a block of tokens at a time."""

    def __init__(self, module: NextTokenLoss, taken: Named) -> None:
        """``taken`` are parameters as they are taken: those of a dropped-out member are not the module's."""
        own = {name: p.detach() for name, p in module.named_parameters()} | taken
        self.weight, self.bias = own["weight"], own.get("bias")

    def _blocks(self, a: tuple[Tensor, ...], d: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(tokens, hidden states [t, width], gradients of the logits [t, V]) of the tokens of all rows."""
        hidden, targets, counted = a
        flat, wanted, along = hidden.flatten(0, 1), targets.flatten(), (d * counted.to(d.dtype)).flatten()
        for some in blocks(len(wanted), len(self.weight)):
            yield some, flat[some], slopes(flat[some], self.weight, self.bias, wanted[some], along[some])

    def dots(self, a: tuple[Tensor, ...], d: Tensor, b: int, u: Named) -> Tensor:
        """<g_i, u> = sum_t c_it (p_it - e_it) . (U_W h_it + U_b), float64 [b]."""
        return self.dots_by_position(a, d, b, u).sum(1)

    def dots_by_position(self, a: tuple[Tensor, ...], d: Tensor, b: int, u: Named) -> Tensor:
        """The summands of ``dots`` by the position that predicts the token, float64 [b, T]."""
        found = torch.zeros(d.numel(), dtype=torch.float64, device=d.device)
        for some, h, slope in self._blocks(a, d):
            along = F.linear(h, u["weight"], u.get("bias")) if "weight" in u else u["bias"]
            found[some] = total(along * slope)
        return found.view(b, -1)

    def gradients(self, a: tuple[Tensor, ...], d: Tensor, b: int, names: tuple[str, ...]) -> Named:
        """Gradients dW [b, V, width] and db [b, V]."""
        rows = [self.weighted(tuple(t[i : i + 1] for t in a), d[i : i + 1], d.new_ones(1), names) for i in range(b)]
        return {name: torch.stack([row[name] for row in rows]) for name in names}

    def norms(self, calls: list[Pair], b: int, names: tuple[str, ...]) -> Tensor | None:
        """None: a row has about as many tokens as the layer is wide."""
        return None

    def weighted(self, a: tuple[Tensor, ...], d: Tensor, c: Tensor, names: tuple[str, ...]) -> Named:
        """sum_i c_i dW_i and sum_i c_i db_i."""
        shapes = {"weight": self.weight.shape, "bias": self.weight.shape[:1]}
        found = {name: d.new_zeros(shapes[name]) for name in names}
        for _, h, slope in self._blocks(a, by_row(d, c)):
            if "weight" in found:
                found["weight"] += slope.T @ h
            if "bias" in found:
                found["bias"] += slope.sum(0)
        return found


RULES: dict[type[nn.Module], Callable[..., Rule]] = {
    nn.Linear: Affine,
    nn.Conv2d: Conv,
    nn.Embedding: Embedding,
    nn.LayerNorm: Norm,
    nn.GroupNorm: Norm,
    nn.BatchNorm1d: Norm,
    nn.BatchNorm2d: Norm,
    nn.BatchNorm3d: Norm,
    NextTokenLoss: NextToken,
}


def rule_of(module: nn.Module, taken: Named | None = None) -> Rule | None:
    """The fast rule of a module whose forward is that of its torch class; None where it has none.

    ``taken`` are its selected parameters as they are taken, by its own names.
    """
    if getattr(module, "parametrizations", None) is not None:
        return None
    if "weight" not in module._parameters:  # computed from others, as old-style weight norm does
        return None
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq):
        return None
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        return None
    for kind, rule in RULES.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return rule(module, taken or {}) if kind is NextTokenLoss else rule(module)
    return None
