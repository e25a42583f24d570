"""Logits, tangents and gradients of rows."""
