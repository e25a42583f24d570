"""Gradients of rows, layer by layer."""
