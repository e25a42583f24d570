"""Tangents by dual numbers carried through a model."""
