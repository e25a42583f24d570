"""Tangents by dual numbers carried through a model; importing anything of it registers every rule."""

from influence_cli.engines.dual import folding, rules

__all__ = ["folding", "rules"]
